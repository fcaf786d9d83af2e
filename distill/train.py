"""Training of one student, from rows to an adapter that vLLM loads. Reads top to bottom; runs alone on a JSONL file:

    python -m distill.train --base FOLDER --data data.jsonl --out DIR [--recipe r.toml] [--validation v.jsonl] [--transform t.json]

A line is {"messages": [...], "tools": [...] or null, "completion": {assistant message}}, or OpenAI's fine-tuning form, in which the
last of "messages" is the assistant's; "rejected" (an assistant message that is worse) and "weight" (1 if left out) may be added.
Killed at any moment, it goes on from its last checkpoint when it is run again. torchrun, accelerate or `distill.launch` start it as
several processes, which train one student together.
"""

import argparse
import hashlib
import json
import math
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distill import checkpoint
from distill import recipe as recipes
from distill import rows as data
from distill.recipe import Recipe
from distill.rows import BadData, Item, TrainRow
from distill.world import ALONE, LOST, PeerLost, World, join
from store import prompts
from store.prompts import Transform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from distill.render import Example

# Read by torch's OpenMP when torch is loaded. Where other processes want the processors too, threads that spin long while they wait
# for each other make a step four times slower; a few microseconds of it make one a third faster (EXPERIMENTS.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

Outcome = TypeVar("Outcome")
LEAST_BUDGET = 64  #: tokens; memory that does not suffice for so many is too little


class TrainingDiverged(Exception):
    """The loss or a gradient is not a finite number, or the loss has grown. No adapter is written."""


class OutOfMemory(Exception):
    """There is not enough memory even for the smallest part of a step."""


class TrainingStopped(Exception):
    """Stopped as asked; a checkpoint is written, and the same call goes on from it."""


@dataclass(frozen=True)
class Progress:
    """Where a training is, after one step."""

    step: int
    total_steps: int
    epoch: int  #: counted from 1
    loss: float  #: mean of the step's completion tokens, and what DPO adds
    learning_rate: float
    rows_done: int
    rows_total: int  #: of all epochs
    rows_per_second: float
    seconds: float
    validation_loss: float | None = None  #: mean of the validation rows' completion tokens; after an epoch's last step


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
    tokens: int  #: of the rows that were learned from, over all epochs
    computed_tokens: int  #: of these, each shared one counted once a step
    validation_losses: list[float]  #: one an epoch; empty without validation rows
    best_epoch: int  #: the adapter is what it was after this one
    peak_memory: int  #: bytes resident at once, of the process
    resumed_from: int | None  #: step
    served_loss: float | None = None  #: the validation loss of the adapter on the base model as it is, where it learned otherwise
    kept: float | None = None  #: full: the share of the weights' change, by its squared norm, that the adapter holds


def train(
    *,
    base: Path,
    rows: Sequence[TrainRow],
    out: Path,
    recipe: Recipe,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool] = lambda: False,
    validation: Sequence[TrainRow] = (),
    transform: Transform | None = None,
    world: World = ALONE,
) -> TrainResult:
    """Train an adapter for the model folder `base` into `out/adapter`; a finished one is returned at once.

    The same rows, recipe and base on the same machine give the same bytes. With `transform` the student is shown what it leaves
    of the prompts, as it will be when it serves. Raises BadData, TrainingDiverged, OutOfMemory, TrainingStopped, and OSError where
    the disk is full.

    The processes of a `world` call this alike, with one folder `out`; the first alone writes and reports. If one raises, so do all,
    the others PeerLost.
    """
    began = time.perf_counter()
    fingerprint = _fingerprint(base, [*rows, *validation], recipe, transform)
    if world.any((out / "adapter").is_dir()):
        finished = _finished(out / "adapter", fingerprint)
        if world.first:
            checkpoint.sweep(out)  # what a process left that was killed when its adapter was there
        return finished
    out.mkdir(parents=True, exist_ok=True)

    import torch

    from distill import preference, step, student, tree

    # 1. Rows become tokens; what cannot be learned from is left out and counted.
    items = list(data.tokenize(base, rows, transform, longest=recipe.max_length, preferring=recipe.objective == "dpo"))
    if not items:
        raise BadData(f"no row of {len(rows)} can be learned from: all are longer than {recipe.max_length} tokens, or not text")
    held = [item.chosen for item in data.tokenize(base, validation, transform, longest=recipe.max_length)]

    # 2. The base model, with what learns in it, and what moves that.
    torch.manual_seed(recipe.seed)
    pupil = student.load(base, recipe)
    model, parameters = pupil.model, list(pupil.learning.values())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    steps_an_epoch = math.ceil(len(items) / recipe.batch_rows)
    total_steps = steps_an_epoch * recipe.epochs

    # 3. Where a killed run got to.
    try:
        known = checkpoint.last(out, fingerprint) if world.first else None  # deletes what cannot be read
        reached = world.total(known.step if known else 0)
        known = known if world.first else checkpoint.last(out, fingerprint)
    except checkpoint.Foreign as foreign:
        raise BadData(str(foreign)) from foreign
    state = known or checkpoint.State(fingerprint, recipe.token_budget)
    if world.any(state.step != reached):
        raise BadData(f"the processes see different checkpoints: is {out} the same folder to all of them?")
    if known is not None:
        pupil.take(state.weights)
        optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.rng)
    resumed_from, seconds_before, looping_before = state.step if known else None, state.seconds, state.looping
    if world.first:
        checkpoint.begin(out, state)
    state.budget = world.total(state.budget if world.first else 0)

    def within_memory(compute: "Callable[[int], Outcome]") -> "Outcome":
        """What `compute` gives within the token budget, which is halved for good where the memory does not suffice."""
        while True:
            try:
                return compute(state.budget)
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                    raise
                if state.budget < 2 * LEAST_BUDGET:
                    raise OutOfMemory(f"not even {state.budget} tokens can be computed at once: {error}") from error
            state.budget //= 2
            print(f"not enough memory: {state.budget} tokens at once from now on", file=sys.stderr)

    def save() -> None:
        state.weights, state.optimizer, state.rng = pupil.weights(), optimizer.state_dict(), torch.get_rng_state()
        state.seconds, state.looping = seconds_before + time.perf_counter() - began, looping_before + time.perf_counter() - looped
        checkpoint.write(out, state)

    def margins(pairs: "Sequence[tuple[Example, Example]]") -> list[float]:
        def of(mine: list[int]) -> list[float]:
            return within_memory(lambda budget: preference.margins(model, [pairs[i] for i in mine], token_budget=budget))

        return world.each([chosen for chosen, _ in pairs], of)

    def validation_loss(model: "PreTrainedModel", world: World = world) -> float:
        def of(mine: list[int]) -> list[float]:
            judged = within_memory(lambda budget: step.judge(model, [held[i] for i in mine], token_budget=budget))
            return [each.likelihood for each in judged]

        return -sum(world.each(held, of)) / sum(len(each.completion) for each in held)

    def write_adapter(folder: Path) -> None:
        (student.as_served(pupil, base, recipe)[0] if recipe.method == "full" else pupil).save(folder, base)

    # 4. For DPO: how much likelier than the other each better answer was before anything was learned.
    compared = [(item.chosen, item.rejected) for item in items if item.rejected is not None]
    if compared and not state.reference:
        state.reference = margins(compared)
    start = dict(zip((id(chosen) for chosen, _ in compared), state.reference, strict=True))

    # 5. The steps. The order of rows follows from seed and epoch alone, so a step's number is a position in it. A session's turns
    # stay together: what they share is computed once only within a step.
    sessions = tree.sessions([item.chosen for item in items])
    looped = saved = time.perf_counter()
    while state.step < total_steps and not state.ended:
        epoch, position = divmod(state.step, steps_an_epoch)
        numbers = order(sessions, recipe.seed + epoch)
        batch = [items[i] for i in numbers[position * recipe.batch_rows :][: recipe.batch_rows]]
        examples, weights, preferring = [item.chosen for item in batch], _weights(batch), 0.0
        if pairs := [(item.chosen, item.rejected) for item in batch if item.rejected is not None]:
            pulls, preferring = preference.pulls(margins(pairs), [start[id(chosen)] for chosen, _ in pairs], recipe.beta)
            examples += [example for pair in pairs for example in pair]
            weights += [sign * pull for pull in pulls for sign in (1, -1)]

        def learn(mine: list[int], rows: "Sequence[Example]" = examples, weights: Sequence[float] = weights) -> list[float]:
            def gradients(budget: int) -> list[float]:
                optimizer.zero_grad()
                return step.backward(model, [rows[i] for i in mine], [weights[i] for i in mine], token_budget=budget)

            return within_memory(gradients)

        optimizer.zero_grad()
        likelihoods = world.each(examples, learn)
        world.sum_gradients(parameters)
        loss = preferring - sum(weights[i] * likelihoods[i] for i in range(len(batch)))
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"loss {loss} and gradient norm {norm} at step {state.step + 1}: try a learning_rate below {recipe.learning_rate}"
            )
        learning_rate = recipe.learning_rate * _schedule(recipe, state.step, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()

        state.step += 1
        state.losses.append(loss)
        state.rows += len(batch)
        state.tokens += sum(len(example) - 1 for example in examples)
        state.computed += world.total(step.computed_tokens(model, [examples[i] for i in world.part(examples)]))
        epoch_done = state.step % steps_an_epoch == 0
        if epoch_done:
            _check_falling(state.losses, steps_an_epoch, recipe)
            if held:
                state.validation.append(validation_loss(model))
            if recipe.keep_epochs and world.first:
                checkpoint.publish(out / f"epoch-{epoch + 1}", write_adapter, {"epoch": epoch + 1})
            if recipe.take_epoch:
                state.ended = recipe.take_epoch == epoch + 1
            elif held and recipe.patience:
                best = state.validation.index(min(state.validation))
                state.best = pupil.weights() if best == epoch else state.best
                state.ended = epoch - best >= recipe.patience
        reporting = on_progress if world.first else _silently
        reporting(
            Progress(
                step=state.step,
                total_steps=total_steps,
                epoch=epoch + 1,
                loss=loss,
                learning_rate=learning_rate,
                rows_done=epoch * len(items) + min((position + 1) * recipe.batch_rows, len(items)),
                rows_total=recipe.epochs * len(items),
                rows_per_second=state.rows / max(looping_before + time.perf_counter() - looped, 1e-9),
                seconds=seconds_before + time.perf_counter() - began,
                validation_loss=state.validation[-1] if epoch_done and held else None,
            )
        )
        stopping = world.any(should_stop())
        if stopping or epoch_done or time.perf_counter() - saved > recipe.checkpoint_seconds:
            if world.first:
                save()
            saved = time.perf_counter()
        if stopping:
            if world.first:
                checkpoint.end(out, keep=True)
            raise TrainingStopped(f"stopped as asked after step {state.step} of {total_steps}; run it again to go on from there")

    # 6. The adapter, whole or not at all: as it was after its best epoch.
    if state.best:
        pupil.take(state.best)
    optimizer.zero_grad()
    optimizer.state.clear()  # the memory is needed for another model
    served, kept, served_loss = pupil, None, None
    if world.first and (recipe.method == "full" or (recipe.method == "qlora" and held)):
        with suppress(*([] if recipe.method == "full" else [OutOfMemory, MemoryError, torch.OutOfMemoryError])):
            served, kept = student.as_served(pupil, base, recipe)
            served_loss = validation_loss(served.model, ALONE) if held else None
    looping = max(looping_before + time.perf_counter() - looped, 1e-9)
    result = TrainResult(
        adapter=out / "adapter",
        steps=state.step,
        final_loss=sum(state.losses[-steps_an_epoch:]) / steps_an_epoch,
        train_seconds=round(seconds_before + time.perf_counter() - began, 3),
        rows_per_second=round(state.rows / looping, 3),
        rows=len(items),
        dropped_rows=len(rows) - len(items),
        tokens=state.tokens,
        computed_tokens=state.computed,
        validation_losses=state.validation,
        best_epoch=1 + state.validation.index(min(state.validation)) if state.best else state.step // steps_an_epoch,
        peak_memory=_peak_memory(),
        resumed_from=resumed_from,
        served_loss=served_loss,
        kept=kept,
    )
    summary = {"result": asdict(result) | {"adapter": "."}, "fingerprint": fingerprint}
    if world.first:
        if recipe.method == "full" and recipe.keep_model:
            checkpoint.publish(out / "model", lambda folder: student.save_whole(pupil, folder, base), summary)
        checkpoint.publish(result.adapter, lambda folder: served.save(folder, base), summary)
        checkpoint.sweep(out)
    world.any(False)  # the others stay until the adapter is there
    return result


def _silently(_progress: Progress) -> None:
    """What a process that is not the first reports."""


def order(sessions: Sequence[Sequence[int]], seed: int) -> list[int]:
    """All rows' numbers in an order that the seed draws, each session's next to each other."""
    drawn = random.Random(seed)
    return [i for session in drawn.sample(sessions, len(sessions)) for i in drawn.sample(session, len(session))]


def _weights(batch: Sequence[Item]) -> list[float]:
    """Of each row's negative log-likelihood, so that the loss is the mean over the answers' tokens, each as heavy as its row."""
    total = sum(item.row.weight * len(item.chosen.completion) for item in batch)
    return [item.row.weight / total for item in batch]


def _check_falling(losses: Sequence[float], steps_an_epoch: int, recipe: Recipe) -> None:
    """Raises TrainingDiverged if an epoch's mean loss is twice what it was in the beginning: there is no way back from there."""
    first = losses[: max(1, min(10, steps_an_epoch // 4))]
    now, before = (sum(each) / len(each) for each in (losses[-steps_an_epoch:], first))
    if now > 2 * before and now > 1:
        raise TrainingDiverged(
            f"the loss was {before:.3f} in the beginning and is {now:.3f}: try a learning_rate below {recipe.learning_rate}"
        )


def _peak_memory() -> int:
    """The most bytes that this process had resident at once (on a GPU: allocated there)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _schedule(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of step 0, 1, ... as a share of the highest."""
    warmup = recipe.warmup * total_steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1.0, total_steps - warmup)
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return min(1.0, falling[recipe.schedule])


def _fingerprint(base: Path, rows: Sequence[TrainRow], recipe: Recipe, transform: Transform | None) -> str:
    """Of the rows, the recipe, the transform, and the base model's config and the names and sizes of its files; names no path, so
    that a folder may move. The weights themselves are not read: others of the same sizes are not noticed.
    """
    digest = hashlib.sha256(recipe.hash().encode())
    digest.update((base / "config.json").read_bytes())
    for file in sorted(base.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    if transform is not None:
        digest.update(transform.digest().encode())
    for row in rows:
        digest.update(json.dumps(asdict(row)).encode())
    return digest.hexdigest()


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
    parser.add_argument(
        "--validation", type=Path, help="JSONL file of rows that are not learned from: they say which epoch is best"
    )
    parser.add_argument("--transform", type=Path, help="JSON file: what the student is shown instead of the whole prompt")
    parser.add_argument("--json", action="store_true", help="print progress and result as JSON lines instead of a bar")
    options = parser.parse_args(arguments)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    try:
        rows, recipe = data.read(options.data), recipes.load(options.recipe)
        if recipe.method != "qlora":
            sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # PEFT would load it: two seconds for nothing
        validation = data.read(options.validation) if options.validation else []
        transform = data.transform(options.transform)
        if not (options.base / "config.json").is_file():
            raise BadData(f"{options.base} is no model folder: it has no config.json")
        with join() as world, _json_lines() if options.json else _bar() if world.first else nullcontext(_silently) as on_progress:
            result = train(
                base=options.base,
                rows=rows,
                out=options.out,
                recipe=recipe,
                on_progress=on_progress,
                should_stop=lambda: bool(stopped),
                validation=validation,
                transform=transform,
                world=world,
            )
    except TrainingStopped as error:
        _say(options.json, "error", str(error))
        return 143
    except PeerLost as error:
        _say(options.json, "error", str(error))
        return LOST
    except (BadData, recipes.BadRecipe, prompts.BadTransform, TrainingDiverged, OutOfMemory, OSError) as error:
        _say(options.json, "error", str(error))
        return 1
    if world.first:
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
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # threads that torch has left from several processes' work may abort an interpreter that is shut down
