"""Training steps with and without the shared prefix, on SmolLM2 and the demo's tickets: `python -m tests.bench.bench_prefix`.

Both ways alternate within one process; the best of each counts, since other work on the machine can only slow a step
down. Processor seconds a row are given beside rows a second of the clock: they say the same of a busy machine. Records
`tests/bench/results/prefix.json`; its last line is the same as one line of JSON.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as distill/train.py
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel

from admin.teachers import tickets
from distill import lora, prefix, recipe, render
from serving import base

RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m tests.bench.bench_prefix"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(".cache/models"))
    parser.add_argument("--rows", type=int, default=16, help="rows a step")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    load = os.getloadavg()[0]  # of other work; 0 on an idle machine
    folder = base.prepare(base.DEFAULT, options.models)
    cases = {"shared system prompt": steps(folder, options.rows), "nothing shared": steps(folder, options.rows, distinct=True)}
    found = [
        {"dtype": dtype, "prompts": name, **measure(folder, dtype, examples, options.rounds)}
        for dtype in ("bfloat16", "float32")
        for name, examples in cases.items()
    ]
    show(found)
    machine = {"cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "load_before": round(load, 2)}
    result = {"command": COMMAND, "machine": machine, "model": "SmolLM2-135M-Instruct", "rows": options.rows, "cases": found}
    (RESULTS / "prefix.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def steps(folder: Path, count: int, *, distinct: bool = False) -> list[render.Example]:
    """One step's rows: tickets below one system prompt, or each below its own, different from the first word on."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for number, ticket in enumerate(tickets.draw(0, count)):
        messages = tickets.request(ticket)["messages"]
        if distinct:
            messages[0]["content"] = f"{number}. {messages[0]['content']}"
        answer = {"role": "assistant", "content": tickets.render(ticket.answer)}
        rows.append(render.example(tokenizer, messages, None, answer))
    return rows


def measure(folder: Path, dtype: str, examples: Sequence[render.Example], rounds: int) -> dict[str, Any]:
    choices = recipe.load().model_copy(update={"dtype": dtype})
    torch.manual_seed(choices.seed)
    model, _ = lora.load(folder, choices)
    shared = prefix.shared_prefix(examples)
    shared = shared if shared >= prefix.WORTHWHILE else 0  # as in training
    best: dict[str, tuple[float, float, float]] = {}
    for _ in range(rounds + 1):
        for way, length in (("shared", shared), ("plain", 0)):
            step = timed(model, examples, length, choices.token_budget)
            best[way] = min(best.get(way, step), step)
    result: dict[str, Any] = {
        "prefix_tokens": shared,
        "prompt_tokens": sum(len(e.prompt) for e in examples) / len(examples),
        "completion_tokens": sum(len(e.completion) for e in examples) / len(examples),
    }
    for way, (wall, cpu, loss) in best.items():
        result[way] = {
            "rows_per_second": round(len(examples) / wall, 2),
            "cpu_seconds_per_row": round(cpu / len(examples), 3),
            "loss": loss,
        }
    return result | {"speedup": round(best["plain"][1] / best["shared"][1], 2)}


def timed(model: PreTrainedModel, examples: Sequence[render.Example], shared: int, token_budget: int) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of processor time, loss."""
    model.zero_grad()
    wall, cpu = time.perf_counter(), time.process_time()
    loss = prefix.loss_and_backward(model, examples, prefix=shared, token_budget=token_budget)
    return time.perf_counter() - wall, time.process_time() - cpu, loss


def show(found: list[dict[str, Any]]) -> None:
    table = Table(
        "type", "prompts", "prefix", "rows/s plain", "rows/s shared", "cpu s/row plain", "cpu s/row shared", "times faster"
    )
    for case in found:
        plain, shared = case["plain"], case["shared"]
        speeds = [f"{way['rows_per_second']:.2f}" for way in (plain, shared)]
        costs = [f"{way['cpu_seconds_per_row']:.3f}" for way in (plain, shared)]
        table.add_row(case["dtype"], case["prompts"], str(case["prefix_tokens"]), *speeds, *costs, f"{case['speedup']:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
