"""TRL's side, in a process of its own: `python -m tests.bench.quality.theirs JOB.json`, TRL on PYTHONPATH. Prints a line of JSON.

It learns from the same rows with the same LoRA until it has spent the job's processor seconds; its loading is not counted. The
learning rate follows the share that is spent, so that the schedule ends when the training does.
"""

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTTrainer

from distill import rows as data
from tests.bench import sft
from tests.bench.quality.sets import SETS

MICRO_BATCH = {"banking77": 2, "exposure": 1}  #: more takes more than 6 GB, and no less time
FOREVER = 1000  #: epochs


class Budget(TrainerCallback):
    """Ends the training when the processor seconds are spent."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began: float | None = None

    def spent(self) -> float:
        return 0.0 if self.began is None else time.process_time() - self.began

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_kwargs: Any) -> Any:
        control.should_training_stop = self.spent() >= self.seconds
        if state.global_step % 10 == 0:
            print(f"step {state.global_step}, {self.spent():.0f} s of {self.seconds:.0f}", file=sys.stderr)
        return control


class Timed(SFTTrainer):
    """With stillroom's schedule, by the share of the budget that is spent."""

    budget: Budget

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ARG002
        def share(_step: int) -> float:
            done = self.budget.spent() / self.budget.seconds
            return min(1.0, max(done, 0.01) / 0.1, (1 + math.cos(math.pi * min(1.0, max(0.0, done - 0.1) / 0.9))) / 2)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
        self._created_lr_scheduler = True
        return self.lr_scheduler


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    recipe, base = job["recipe"], Path(job["base"])
    torch.manual_seed(0)
    items = data.tokenize(base, SETS[job["set"]].train(job["rows"]), None)
    examples = [item.chosen for item in items]
    rows = [{"input_ids": e.prompt + e.completion, "labels": [-100] * len(e.prompt) + e.completion} for e in examples]
    config = sft.settings(
        job["out"],
        batch=recipe["batch_rows"],
        micro_batch=MICRO_BATCH[job["set"]],
        learning_rate=recipe["learning_rate"],
        autocast=True,  # the fastest of those that the training benchmark tries
        num_train_epochs=FOREVER,
        logging_steps=10,
    )
    Timed.budget = Budget(job["cpu_seconds"])
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
        args=config,
        train_dataset=sft.dataset(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=sft.lora(recipe["rank"], recipe["alpha"]),
        callbacks=[Timed.budget],
    )
    began = time.perf_counter()
    trainer.train()
    told = {
        "cpu_seconds": round(Timed.budget.spent(), 1),
        "seconds": round(time.perf_counter() - began, 1),
        "steps": trainer.state.global_step,
        "rows_seen": trainer.state.global_step * recipe["batch_rows"],
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1:],
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    trainer.save_model(str(Path(job["out"]) / "adapter"))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
