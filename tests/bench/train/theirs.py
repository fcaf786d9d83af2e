"""TRL's side, in a process of its own: `python -m tests.bench.train.theirs JOB.json`, TRL on PYTHONPATH. Prints a line of JSON."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as stillroom has it
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTTrainer

from tests.bench import sft


class Clock(TrainerCallback):
    """Seconds by the clock and of processor time, a step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.began = (0.0, 0.0)

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.times.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))


class InOrder(SFTTrainer):
    """The rows in the order in which they are given, as on the other side."""

    def _get_train_sampler(self, *_args: Any, **_kwargs: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype)
    rows = [{"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion} for prompt, completion in job["rows"]]
    config = sft.settings(
        job["out"],
        batch=job["batch"],
        micro_batch=job["micro_batch"],
        learning_rate=job["learning_rate"],
        autocast=job["autocast"],
        num_train_epochs=1,
        lr_scheduler_type="constant",
        logging_steps=1,
    )
    clock = Clock()
    trainer = InOrder(
        model=model,
        args=config,
        train_dataset=sft.dataset(rows),
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        peft_config=sft.lora(job["rank"], job["alpha"]),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(job["out"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"steps": clock.times, "losses": losses, "peak_mib": memory}))


if __name__ == "__main__":
    main()
