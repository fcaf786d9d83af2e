"""The table: `python -m tests.bench.train`. Its last line is one line of JSON; recorded in tests/bench/results/train.json.

Both sides get the same tokens in the same order, the same LoRA, effective batch, learning rate and number of steps, each in a
process of its own, one after the other. Processor seconds are compared: other work on the machine hardly changes them. The first
step of each is left out: it sets things up.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill import recipe, render, step, student
from serving import base
from tests.bench.train.cases import CASES, DATA, Case

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "tests" / "bench" / "results"
RANK, ALPHA, LEARNING_RATE = 8, 16.0, 1e-3
STEPS = 3
TRIED = [{"micro_batch": size, "autocast": autocast} for autocast in (False, True) for size in (2, 8)]
console = Console(stderr=True, width=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--models", type=Path, default=ROOT / ".cache/models")
    parser.add_argument("--trl", type=Path, default=ROOT / ".cache/bench/trl", help="where TRL is installed")
    parser.add_argument("--held", type=int, default=64, help="rows by which the outcomes are compared")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each side, the first of which is not counted")
    parser.add_argument("--record", action="store_true", help="write tests/bench/results/train.json")
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"no recorded traffic in {DATA}: set STILLROOM_DATA")
    folder = base.prepare(base.DEFAULT, options.models).resolve()
    cases = [case for case in CASES if not options.only or case.name in options.only.split(",")]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory(prefix="stillroom-") as temporary:
        run = Path(temporary)
        best, tried = best_settings(folder, cases[0].rows(tokenizer, "train", 8), run, options.trl)
        found: dict[str, dict[str, Any]] = {}
        for case in cases:
            found[case.name] = measure(case, tokenizer, folder, run, options, best)
            if options.record:
                record(found, {"best": best, "tried": tried}, options.steps)
    console.print(table(found))
    print(json.dumps(result(found)))


def record(found: dict[str, dict[str, Any]], trl: dict[str, Any], steps: int) -> None:
    """Write what is known so far."""
    machine = {"cores": os.cpu_count(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    settings = {"model": "SmolLM2-135M-Instruct", "rank": RANK, "alpha": ALPHA, "learning_rate": LEARNING_RATE, "steps": steps}
    told = {
        "command": " ".join(["python -m tests.bench.train", *sys.argv[1:]]),
        "machine": machine,
        "settings": settings,
        "trl": trl,
        "cases": found,
    }
    (RESULTS / "train.json").write_text(json.dumps({**told, "result": result(found)}, indent=2) + "\n")


def result(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: each["result"] for name, each in found.items()}


def best_settings(folder: Path, rows: list[render.Example], run: Path, trl: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """TRL's fastest settings here, by processor seconds of one step of `rows`; and all that were tried."""
    tried = []
    for settings in TRIED:
        job = write_job(run, "try", folder, rows, len(rows), settings)
        found = side("theirs", job, trl)
        tried.append({**settings, "cpu_seconds": round(found["steps"][0][1], 1), "peak_mib": round(found["peak_mib"])})
        console.print(f"TRL, {settings}: {tried[-1]['cpu_seconds']} s")
    best = min(tried, key=lambda each: each["cpu_seconds"])
    return {key: best[key] for key in ("micro_batch", "autocast")}, tried


def measure(
    case: Case, tokenizer: Any, folder: Path, run: Path, options: argparse.Namespace, best: dict[str, Any]
) -> dict[str, Any]:
    """Both sides' figures for a case, and how they compare."""
    rows = case.rows(tokenizer, "train", options.steps * case.batch + (options.held if case.name == "tau" else 0))
    held = rows[options.steps * case.batch :] or case.rows(tokenizer, "test", options.held)
    rows = rows[: options.steps * case.batch]
    found: dict[str, Any] = {}
    for name in ("ours", "theirs"):
        found[name] = side(name, write_job(run, f"{case.name}-{name}", folder, rows, case.batch, best), options.trl)
        found[name]["held_loss"] = held_loss(folder, run / f"{case.name}-{name}", held)
        console.print(f"{case.name}, {name}: {rate(found[name], case.batch):.2f} rows a second of processor time")
    ours, theirs = found["ours"], found["theirs"]
    found["tokens_a_row"] = round(sum(map(len, rows)) / len(rows), 1)
    found["batch"] = case.batch
    found["result"] = {
        "rows_s_vs_trl": round(rate(ours, case.batch) / rate(theirs, case.batch), 2),
        "peak_memory_vs_trl": round(ours["peak_mib"] / theirs["peak_mib"], 3),
        "grad_rel_diff": float(f"{gradient_difference(folder, rows[: 4 if case.name == 'tau' else 8]):.2g}"),
        "loss_vs_trl": round(ours["held_loss"] / theirs["held_loss"], 4),
    }
    return found


def write_job(run: Path, name: str, folder: Path, rows: list[render.Example], batch: int, settings: dict[str, Any]) -> Path:
    job = {
        "rows": [[row.prompt, row.completion] for row in rows],
        "base": str(folder),
        "out": str(run / name),
        "rank": RANK,
        "alpha": ALPHA,
        "dtype": "bfloat16",
        "batch": batch,
        "learning_rate": LEARNING_RATE,
        **settings,
    }
    path = run / f"{name}.json"
    path.write_text(json.dumps(job))
    return path


def side(name: str, job: Path, trl: Path) -> dict[str, Any]:
    """What `ours` or `theirs` says of a job."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(trl)]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"tests.bench.train.{name}", job]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def rate(found: dict[str, Any], batch: int) -> float:
    """Rows a second of processor time, without the first step."""
    steps = found["steps"][1:] or found["steps"]
    return len(steps) * batch / sum(cpu for _, cpu in steps)


def held_loss(folder: Path, adapter: Path, held: list[render.Example]) -> float:
    """Mean loss of an answer's token, of rows that were not trained on; both adapters judged alike."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    judged = step.judge(PeftModel.from_pretrained(model, adapter).get_base_model().eval(), held, token_budget=4096)
    return -sum(each.likelihood for each in judged) / sum(len(row.completion) for row in held)


def gradient_difference(folder: Path, rows: list[render.Example]) -> float:
    """Of one step in float32: the norm of the difference from every row alone, whole, by the norm."""
    choices = recipe.load().model_copy(update={"dtype": "float32"})
    weights = [1 / sum(len(row.completion) for row in rows)] * len(rows)
    torch.manual_seed(0)
    pupil = student.load(folder, choices)
    for name, parameter in pupil.learning.items():
        if "lora_B" in name:  # as it is they are zero, and half of the gradients too
            torch.nn.init.normal_(parameter, std=0.01)
    step.backward(pupil.model, rows, weights, token_budget=4096)
    ours = {name: parameter.grad.clone() for name, parameter in pupil.learning.items() if parameter.grad is not None}
    pupil.model.zero_grad()
    pupil.model.set_attn_implementation("sdpa")
    for row, weight in zip(rows, weights, strict=True):
        logits = pupil.model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0, len(row.prompt) - 1 : -1]
        (weight * functional.cross_entropy(logits, torch.tensor(row.completion), reduction="sum")).backward()
    plain = {name: parameter.grad for name, parameter in pupil.learning.items() if parameter.grad is not None}
    difference = sum((ours[name] - plain[name]).square().sum().item() for name in plain)
    return math.sqrt(difference / sum(gradient.square().sum().item() for gradient in plain.values()))


def table(found: dict[str, Any]) -> Table:
    shown = Table(
        "rows", "tokens", "batch", "rows/s ours", "rows/s TRL", "times", "MiB ours", "MiB TRL", "loss ours", "loss TRL", "grad"
    )
    for name, each in found.items():
        ours, theirs, result = each["ours"], each["theirs"], each["result"]
        shown.add_row(
            name,
            str(each["tokens_a_row"]),
            str(each["batch"]),
            *(f"{rate(one, each['batch']):.3f}" for one in (ours, theirs)),
            f"{result['rows_s_vs_trl']:.1f}",
            *(f"{one['peak_mib']:.0f}" for one in (ours, theirs)),
            *(f"{one['held_loss']:.4f}" for one in (ours, theirs)),
            f"{result['grad_rel_diff']:.1e}",
        )
    return shown


if __name__ == "__main__":
    main()
