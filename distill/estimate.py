"""What a training will take, said before it begins: seconds, memory, money. Runs alone on a JSONL file:

    python -m distill.estimate --base FOLDER --data train.jsonl [--recipe r.toml] [--transform transform.json] [--measure]

The tokens are counted on the real rows, shared beginnings once a step as the trainer computes them. The pace is an earlier
training's on this machine, else measured: a few steps of the trainer itself, the longest rows among them.
"""

import argparse
import json
import logging
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlmodel import Session, col, select

from distill import process, recipe, runs, train
from distill import rows as data
from distill.recipe import Recipe
from distill.rows import BadData, Item
from distill.settings import DistillSettings
from store import prompts
from store.session import Database
from store.states import RunStatus
from store.tables import Dataset, Run

if TYPE_CHECKING:
    from distill.render import Example

log = logging.getLogger("stillroom.distill")
COUNTED = 4000  #: rows whose tokens are counted; of more, so many by chance
STEPS = 2, 4  #: so many are measured, least and most
SHARE = 0.1  #: of the training that they may be, where that is more than the least
FORWARD = 1 / 3  #: of a token's time, without gradients
STARTED = 3.0  #: a training tells its pace if it took so many times what its start did
#: Choices that change the pace of a step's tokens.
OF_PACE = ("method", "objective", "dtype", "share_prefix", "batch_rows")


@dataclass(frozen=True)
class Work:
    """One epoch of all rows."""

    rows: int
    tokens: int  #: each row for itself
    computed: int  #: what a step's rows share counted once
    validation: int = 0  #: tokens computed, without gradients, for the validation rows


@dataclass(frozen=True)
class Pace:
    """How fast this machine trains a base model."""

    start_seconds: float  #: until the first step, and after the last
    token_seconds: float  #: for a computed token, both ways
    peak_memory: int | None  #: bytes
    measured: str  #: on what: "a few steps", or an earlier run's id


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take."""

    seconds: float
    peak_memory: int | None  #: bytes
    usd: float
    work: Work
    pace: Pace
    machine: str

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "Estimate":
        return cls(**stored | {"work": Work(**stored["work"]), "pace": Pace(**stored["pace"])})


def expect(work: Work, pace: Pace, choices: dict[str, Any], share: float, usd_hour: float) -> Estimate:
    """A training by these choices (a recipe's) on a share of the rows. Pure."""
    passes = 2 if choices.get("objective") == "dpo" else 1  # DPO reads an answer that is wished for, and one that is not
    epoch = work.computed * share * passes + work.validation * FORWARD
    seconds = pace.start_seconds + pace.token_seconds * epoch * choices["epochs"]
    return Estimate(round(seconds, 1), pace.peak_memory, round(usd(seconds, usd_hour), 6), work, pace, machine())


def usd(seconds: float, usd_hour: float) -> float:
    """What so much time on the machine costs."""
    return seconds / 3600 * usd_hour


def machine() -> str:
    """What an estimate holds for."""
    return f"{platform.node()}, {os.cpu_count()} processors"


def before(db: Database, run_id: str, base: Path, settings: DistillSettings, check: Callable[[], None]) -> Estimate | None:
    """The run's estimate, made and kept if there is none. None if it cannot be made, which is logged and stops nothing."""
    with db.read() as session:
        run = session.get_one(Run, run_id)
        if run.estimate is not None:
            return Estimate.read(run.estimate)
        if not settings.estimate or run.status == RunStatus.SUCCEEDED:
            return None
        dataset = session.get_one(Dataset, run.dataset_id)
        work, pace = _known_work(session, run), _known_pace(session, run)
    try:
        if work is None or pace is None:
            work, pace = _measure(run, dataset, base, settings, check, pace)
    except (process.ProcessFailed, process.ProcessKilled, runs.RunFailed) as why:
        log.warning("what run %s will take cannot be said: %s", run_id, why)
        return None
    found = expect(work, pace, run.recipe, run.share, settings.compute_usd_hour)
    with db.begin() as session:
        session.get_one(Run, run_id).estimate = asdict(found)
    memory = f"{found.peak_memory / 1e9:.1f} GB" if found.peak_memory else "unknown memory"
    log.info("run %s will take about %.0f s and %s (pace of %s)", run_id, found.seconds, memory, pace.measured)
    return found


def count(examples: "Sequence[Example]", choices: Recipe, rows: int, held: "Sequence[Example]" = ()) -> Work:
    """One epoch of `rows` rows, of which these are all, or some by chance; then the validation rows, `held`."""
    from distill import tree

    order = [examples[i] for i in train.order(tree.sessions(examples), choices.seed)]
    tokens, validation = (sum(len(each) - 1 for each in some) for some in (order, held))
    computed = tokens
    if choices.share_prefix:
        steps = [order[at : at + choices.batch_rows] for at in range(0, len(order), choices.batch_rows)]
        computed = sum(root.size for step in steps for root in tree.grow(step))
        validation = sum(root.size for root in tree.grow(held)) if held else 0
    scale = rows / max(1, len(order))
    return Work(rows, round(tokens * scale), round(computed * scale), validation)


def _known_work(session: Session, run: Run) -> Work | None:
    """Counted for another run of the same rows, base and prompts."""
    same = select(Run).where(Run.dataset_id == run.dataset_id, Run.base_model == run.base_model, col(Run.estimate).is_not(None))
    for other in session.exec(same.order_by(col(Run.created_at).desc())):
        if other.estimate and all(
            other.recipe.get(name) == run.recipe.get(name) for name in ("strip", "batch_rows", "share_prefix")
        ):
            return Estimate.read(other.estimate).work
    return None


def _known_pace(session: Session, run: Run) -> Pace | None:
    """An earlier training's, of the same base model and method on this machine: what it really took."""
    trained = select(Run).where(Run.base_model == run.base_model, Run.status == RunStatus.SUCCEEDED, col(Run.estimate).is_not(None))
    for other in session.exec(trained.order_by(col(Run.finished_at).desc()).limit(20)):
        if not other.estimate or not other.train_seconds or other.estimate["machine"] != machine():
            continue
        if any(other.recipe.get(name) != run.recipe.get(name) for name in OF_PACE):
            continue
        took, work = other.took, Estimate.read(other.estimate).work
        if took is None or other.train_seconds <= STARTED * took["start_seconds"]:
            continue
        computed = took["computed_tokens"] + took["epochs"] * work.validation * FORWARD
        start = took["start_seconds"]
        return Pace(start, (other.train_seconds - start) / computed, other.peak_memory, f"run {other.id}")
    return None


def _measure(
    run: Run, dataset: Dataset, base: Path, settings: DistillSettings, check: Callable[[], None], pace: Pace | None
) -> tuple[Work, Pace]:
    folder = settings.run_folder(run.id)
    folder.mkdir(parents=True, exist_ok=True)
    choices = folder / "recipe.json"
    choices.write_text(json.dumps(run.recipe))
    command: list[str | Path] = [sys.executable, "-m", "distill.estimate", "--base", base, "--recipe", choices]
    command += ["--data", settings.home_path / dataset.path / "train.jsonl"]
    if validation := runs.validation_file(dataset, settings):
        command += ["--validation", validation]
    if transform := runs.transform_file(run, dataset, settings):
        command += ["--transform", transform]
    if pace is None:
        command.append("--measure")
    ended = process.follow(command, "estimate", check)
    if pace is None:
        pace = Pace(**ended.result["pace"] | {"peak_memory": ended.peak_memory})
    return Work(**ended.result["work"]), pace


def _try(base: Path, found: Sequence[Item], choices: Recipe, transform: prompts.Transform | None, rows: int) -> tuple[float, float]:
    """(seconds of a start and an end, seconds of a computed token), of a few steps with the longest rows among them.

    `rows`: that the training will have an epoch.
    """
    by_length = sorted(found, key=lambda item: len(item.chosen), reverse=True)
    longest, others = by_length[: choices.batch_rows], by_length[choices.batch_rows :]
    steps = min(STEPS[1], max(STEPS[0], round(SHARE * choices.epochs * rows / choices.batch_rows)))
    wanted = (steps - 1) * choices.batch_rows
    some = longest + random.Random(choices.seed).sample(others, min(wanted, len(others)))
    at: list[float] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stillroom-") as out:
        train.train(
            base=base,
            rows=[item.row for item in some],
            out=Path(out),
            recipe=choices.model_copy(update={"epochs": 1, "checkpoint_seconds": 1e9, "keep_epochs": False}),
            on_progress=lambda progress: at.append(progress.seconds),
            transform=transform,
        )
    took = time.perf_counter() - began
    computed = count([item.chosen for item in some], choices, len(some)).computed
    step = (at[-1] - at[0]) / (len(at) - 1) if len(at) > 1 else took / 2  # the first one is slower: it sets things up
    return max(0.0, took - step * len(at)), step * len(at) / computed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. The result is a line of JSON, and so is the error of exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m distill.estimate", description="Say what a training on a JSONL file will take."
    )
    parser.add_argument("--base", type=Path, required=True, help="model folder")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file")
    parser.add_argument("--recipe", type=Path, help="TOML file with what differs from the default recipe")
    parser.add_argument("--validation", type=Path, help="JSONL file of rows that are judged after each epoch")
    parser.add_argument("--transform", type=Path, help="what the student is shown instead of the whole prompt")
    parser.add_argument("--measure", action="store_true", help="train a few steps, and expect the whole from these")
    options = parser.parse_args(arguments)
    try:
        rows, choices = data.read(options.data), recipe.load(options.recipe)
        transform = data.transform(options.transform)
        some = rows if len(rows) <= COUNTED else random.Random(choices.seed).sample(rows, COUNTED)
        began = time.perf_counter()
        found = list(data.tokenize(options.base, some, transform, longest=choices.max_length))
        counting = (time.perf_counter() - began) * len(rows) / len(some)  # the trainer does the same
        if not found:
            raise BadData("no row can be trained on")
        validation = data.read(options.validation) if options.validation else []
        held = [item.chosen for item in data.tokenize(options.base, validation, transform, longest=choices.max_length)]
        able = round(len(rows) * len(found) / len(some))
        work = count([item.chosen for item in found], choices, able, held)
        report: dict[str, Any] = {"work": asdict(work)}
        if options.measure:
            start, token = _try(options.base, found, choices, transform, able)
            pace = Pace(start + counting, token, None, "a few steps")
            report |= {"pace": asdict(pace), "expected": asdict(expect(work, pace, choices.model_dump(), 1.0, 0.0))}
    except (BadData, recipe.BadRecipe, train.TrainingDiverged, prompts.BadTransform, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"result": report}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
