"""LoRA training of one student, from rows to an adapter that vLLM loads. Reads top to bottom; runs alone on a JSONL file:

    python -m distill.train --base FOLDER --data data.jsonl --out DIR [--recipe r.toml]

A line is {"messages": [...], "tools": [...] or null, "completion": {assistant message}}, or OpenAI's fine-tuning form, in which the
last of "messages" is the assistant's. Killed at any moment, it goes on from its last checkpoint when it is run again.
"""

import argparse
import hashlib
import json
import math
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import recipe as recipes
from distill.recipe import Recipe

if TYPE_CHECKING:
    from distill.render import Example

# Read by torch's OpenMP when torch is loaded. Where other processes want the processors too, threads that spin long while they wait
# for each other make a step four times slower; a few microseconds of it make one a third faster (EXPERIMENTS.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

Message = dict[str, Any]
KEPT_CHECKPOINTS = 2


class BadData(ValueError):
    """Nothing can be learned from the data; the message says why, with the line's number where one line is at fault."""


class TrainingDiverged(Exception):
    """The loss or a gradient is not a finite number. No adapter is written."""


class TrainingStopped(Exception):
    """Stopped as asked; a checkpoint is written, and the same call goes on from it."""


@dataclass(frozen=True)
class TrainRow:
    """A prompt and the answer to learn."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    completion: Message


@dataclass(frozen=True)
class Progress:
    """Where a training is, after one step."""

    step: int
    total_steps: int
    epoch: int  #: counted from 1
    loss: float  #: mean of the step's completion tokens
    learning_rate: float
    rows_done: int
    rows_total: int  #: of all epochs
    rows_per_second: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What a finished training left, and what it took."""

    adapter: Path  #: PEFT folder
    steps: int
    final_loss: float  #: mean of the last epoch's steps
    train_seconds: float  #: loading included, over all resumptions
    rows_per_second: float  #: loading excluded, over all resumptions
    rows: int
    dropped_rows: int  #: too long, or not to be rendered
    shared_prefix_tokens: int  #: that all prompts begin with, 0 if they are not shared
    resumed_from: int | None  #: step


def train(
    *,
    base: Path,
    rows: Sequence[TrainRow],
    out: Path,
    recipe: Recipe,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train an adapter for the model folder `base` into `out/adapter`; a finished one is returned at once.

    The same rows, recipe and base on the same machine give the same bytes. Raises BadData, TrainingDiverged, TrainingStopped.
    """
    began = time.perf_counter()
    fingerprint = _fingerprint(base, rows, recipe)
    if (out / "adapter").is_dir():
        return _finished(out / "adapter", fingerprint)
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".adapter-*"):  # by a training that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)

    import torch
    from transformers import AutoTokenizer

    from distill import lora, prefix

    # 1. Rows become tokens; what cannot be learned from is left out and counted.
    examples = list(_examples(AutoTokenizer.from_pretrained(base), rows, recipe.max_length))
    if not examples:
        raise BadData(f"no row of {len(rows)} can be learned from: all are longer than {recipe.max_length} tokens, or not text")

    # 2. The base model, frozen, with fresh adapter matrices, and what moves them.
    torch.manual_seed(recipe.seed)
    model, adapter = lora.load(base, recipe)
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    share = recipe.share_prefix and prefix.can_share(model)
    steps_an_epoch = math.ceil(len(examples) / recipe.batch_rows)
    total_steps = steps_an_epoch * recipe.epochs

    # 3. Where a killed run got to.
    step, losses, seconds_before = 0, list[float](), 0.0
    rows_looped, looping_before = 0, 0.0
    state = _last_checkpoint(out, fingerprint)
    resumed_from: int | None = None
    if state is not None:
        with torch.no_grad():
            for name, weights in state["adapter"].items():
                adapter.get_parameter(name).copy_(weights)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        resumed_from = step = state["step"]
        losses, seconds_before = state["losses"], state["seconds"]
        rows_looped, looping_before = state["rows"], state["looping"]

    def seconds() -> float:
        return seconds_before + time.perf_counter() - began

    def looping() -> float:
        return max(looping_before + time.perf_counter() - looped, 1e-9)

    def checkpoint() -> None:
        weights = {name: p.detach() for name, p in adapter.named_parameters() if p.requires_grad}
        moving = {"adapter": weights, "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        where = {"step": step, "losses": losses, "seconds": seconds(), "rows": rows_looped, "looping": looping()}
        _write_checkpoint(out, step, moving | where | {"fingerprint": fingerprint})

    # 4. The steps. The order of rows follows from seed and epoch alone, so a step's number is a position in it.
    looped = saved = time.perf_counter()
    while step < total_steps:
        epoch, position = divmod(step, steps_an_epoch)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(recipe.seed + epoch)).tolist()
        batch = [examples[i] for i in order[position * recipe.batch_rows :][: recipe.batch_rows]]
        shared = prefix.shared_prefix(batch) if share else 0
        loss = prefix.loss_and_backward(
            model, batch, prefix=shared if shared >= prefix.WORTHWHILE else 0, token_budget=recipe.token_budget
        )
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"loss {loss} and gradient norm {norm} at step {step + 1}: try a learning_rate below {recipe.learning_rate}"
            )
        learning_rate = recipe.learning_rate * _schedule(recipe, step, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()

        step += 1
        losses.append(loss)
        rows_looped += len(batch)
        now = time.perf_counter()
        on_progress(
            Progress(
                step=step,
                total_steps=total_steps,
                epoch=epoch + 1,
                loss=loss,
                learning_rate=learning_rate,
                rows_done=epoch * len(examples) + min((position + 1) * recipe.batch_rows, len(examples)),
                rows_total=recipe.epochs * len(examples),
                rows_per_second=rows_looped / looping(),
                seconds=seconds(),
            )
        )
        stopping = should_stop()
        if stopping or now - saved > recipe.checkpoint_seconds or step % steps_an_epoch == 0:
            checkpoint()
            saved = now
        if stopping:
            raise TrainingStopped(f"stopped as asked after step {step} of {total_steps}; run it again to go on from there")

    # 5. The adapter, whole or not at all.
    whole = prefix.shared_prefix(examples) if share else 0
    result = TrainResult(
        adapter=out / "adapter",
        steps=total_steps,
        final_loss=sum(losses[-steps_an_epoch:]) / steps_an_epoch,
        train_seconds=round(seconds(), 3),
        rows_per_second=round(rows_looped / looping(), 3),
        rows=len(examples),
        dropped_rows=len(rows) - len(examples),
        shared_prefix_tokens=whole if whole >= prefix.WORTHWHILE else 0,
        resumed_from=resumed_from,
    )
    _publish(adapter, base, result, fingerprint)
    for left in out.glob("checkpoint-*"):
        left.unlink()
    return result


def read_rows(path: Path) -> list[TrainRow]:
    """The rows of a JSONL file. Raises BadData with the number of the first line that is none."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            messages, tools, completion = row["messages"], row.get("tools"), row.get("completion")
            if completion is None:
                *messages, completion = messages
            if completion["role"] != "assistant" or not all(isinstance(m, dict) and m["role"] for m in messages):
                raise ValueError("the answer must be an assistant's message, and every message needs a role")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadData(f"{path}, line {number}: {type(error).__name__}: {error}") from error
        rows.append(TrainRow(messages, tools or None, completion))
    if not rows:
        raise BadData(f"{path} has no rows")
    return rows


def _examples(tokenizer: Any, rows: Sequence[TrainRow], max_length: int) -> "Iterator[Example]":
    from distill import render

    for row in rows:
        try:
            example = render.example(tokenizer, row.messages, row.tools, row.completion)
        except (render.Unrenderable, KeyError, TypeError, AttributeError):  # the last three: a shape nobody has thought of
            continue
        if len(example) <= max_length:
            yield example


def _schedule(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of step 0, 1, ... as a share of the highest."""
    warmup = recipe.warmup * total_steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1.0, total_steps - warmup)
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return min(1.0, falling[recipe.schedule])


def _fingerprint(base: Path, rows: Sequence[TrainRow], recipe: Recipe) -> str:
    """Of the rows, the recipe, and the base model's config and the names and sizes of its files; names no path, so that a
    folder may move. The weights themselves are not read: others of the same sizes are not noticed.
    """
    digest = hashlib.sha256(recipe.hash().encode())
    digest.update((base / "config.json").read_bytes())
    for file in sorted(base.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    for row in rows:
        digest.update(json.dumps(asdict(row)).encode())
    return digest.hexdigest()


def _write_checkpoint(out: Path, step: int, state: dict[str, Any]) -> None:
    import torch

    target = out / f"checkpoint-{step:07}.pt"
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    for old in sorted(out.glob("checkpoint-*.pt"))[:-KEPT_CHECKPOINTS]:
        old.unlink()


def _last_checkpoint(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """What the newest checkpoint that can be read holds; those that cannot be are deleted."""
    import torch

    for file in sorted(out.glob("checkpoint-*.pt"), reverse=True):
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True)
            known = state["fingerprint"]
        except (OSError, EOFError, KeyError, TypeError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            print(f"{file.name} cannot be read and is deleted: {error}", file=sys.stderr)
            file.unlink()
            continue
        if known != fingerprint:
            raise BadData(f"{out} holds checkpoints of another training (other rows, recipe or base model): give an empty folder")
        return state
    return None


def _publish(adapter: Any, base: Path, result: TrainResult, fingerprint: str) -> None:
    """Write the adapter beside its place, then move it there."""
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=result.adapter.parent) as partial:
        folder = Path(partial) / "adapter"
        adapter.peft_config["default"].base_model_name_or_path = str(base)
        adapter.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        summary = {"result": asdict(result) | {"adapter": "."}, "fingerprint": fingerprint}
        (folder / "training.json").write_text(json.dumps(summary, indent=2))
        folder.rename(result.adapter)


def _finished(folder: Path, fingerprint: str) -> TrainResult:
    summary = json.loads((folder / "training.json").read_text())
    if summary["fingerprint"] != fingerprint:
        raise BadData(f"{folder} is the result of another training (other rows, recipe or base model): give an empty folder")
    return TrainResult(**summary["result"] | {"adapter": folder})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. 0: done; 1: could not train, and why is printed; 143: stopped by SIGTERM, a checkpoint is written."""
    parser = argparse.ArgumentParser(prog="python -m distill.train", description="Train a LoRA adapter on a JSONL file.")
    parser.add_argument("--base", type=Path, required=True, help="model folder")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the adapter")
    parser.add_argument("--recipe", type=Path, help="TOML file with what differs from the default recipe")
    parser.add_argument("--json", action="store_true", help="print progress and result as JSON lines instead of a bar")
    options = parser.parse_args(arguments)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    try:
        rows, recipe = read_rows(options.data), recipes.load(options.recipe)
        if not (options.base / "config.json").is_file():
            raise BadData(f"{options.base} is no model folder: it has no config.json")
        with _json_lines() if options.json else _bar() as on_progress:
            result = train(
                base=options.base,
                rows=rows,
                out=options.out,
                recipe=recipe,
                on_progress=on_progress,
                should_stop=lambda: bool(stopped),
            )
    except TrainingStopped as error:
        _say(options.json, "error", str(error))
        return 143
    except (BadData, recipes.BadRecipe, TrainingDiverged) as error:
        _say(options.json, "error", str(error))
        return 1
    _say(options.json, "result", asdict(result) | {"adapter": str(result.adapter)})
    return 0


def _say(as_json: bool, kind: str, what: Any) -> None:
    line = json.dumps({kind: what}) if as_json else f"{kind}: {what}"
    print(line, file=sys.stderr if kind == "error" and not as_json else sys.stdout, flush=True)


@contextmanager
def _json_lines() -> Iterator[Callable[[Progress], None]]:
    yield lambda progress: print(json.dumps({"progress": asdict(progress)}), flush=True)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Bars(*columns) as bars:
        task = bars.add_task("loading the base model", total=None)
        yield lambda p: bars.update(
            task,
            completed=p.step,
            total=p.total_steps,
            description=f"loss {p.loss:.4f}  {p.rows_per_second:.1f} rows/s",
        )


if __name__ == "__main__":
    sys.exit(main())
