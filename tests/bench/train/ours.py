"""stillroom's side, in a process of its own: `python -m tests.bench.train.ours JOB.json`. Prints a line of JSON."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as distill/train.py
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import json
import resource
import sys
import time
from pathlib import Path

import torch

from distill import recipe, step, student
from distill.render import Example


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    rows = [Example(*row) for row in job["rows"]]
    choices = recipe.load().model_copy(update={"rank": job["rank"], "alpha": job["alpha"], "dtype": job["dtype"]})
    torch.manual_seed(0)
    pupil = student.load(Path(job["base"]), choices)
    parameters = list(pupil.learning.values())
    optimizer = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.0, fused=True)
    times: list[tuple[float, float]] = []
    losses = []
    for start in range(0, len(rows), job["batch"]):
        began = time.perf_counter(), time.process_time()
        batch = rows[start : start + job["batch"]]
        weights = [1 / sum(len(row.completion) for row in batch)] * len(batch)
        optimizer.zero_grad()
        likelihoods = step.backward(pupil.model, batch, weights, token_budget=choices.token_budget)
        losses.append(-weights[0] * sum(likelihoods))
        torch.nn.utils.clip_grad_norm_(parameters, choices.clip)
        optimizer.step()
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    pupil.save(Path(job["out"]), Path(job["base"]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"steps": times, "losses": losses, "peak_mib": memory}))


if __name__ == "__main__":
    main()
