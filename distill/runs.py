"""Runs: one training of one dataset by one recipe, in a process of its own, from queued to an adapter's row."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, func, select

from distill import card, checkpoint, datasets, launch, lineage, process, stripping
from distill.recipe import Recipe
from distill.settings import DistillSettings
from store import audit, prompts
from store.columns import now
from store.session import Database
from store.settings import StoreSettings
from store.states import AdapterStatus, DatasetStatus, RunPurpose, RunStatus
from store.tables import Adapter, Dataset, Run, RunStep

MAX_ATTEMPTS = 5
RECORD_SECONDS = 0.5


class RunFailed(Exception):
    """The training ended without an adapter; the message is the run's error."""


class TrainerKilled(Exception):
    """The trainer was killed from outside; turning again goes on from its last checkpoint."""


def unfinished(session: Session, task_id: str) -> Run | None:
    """A run of the task whose way to a verdict (or a refusal) is not at its end: one to be trained, else the latest candidate's."""
    runs = select(Run).where(Run.task_id == task_id).order_by(col(Run.created_at).desc())
    untrained = runs.where(col(Run.status).in_([RunStatus.QUEUED, RunStatus.RUNNING]), Run.purpose == RunPurpose.CANDIDATE)
    candidates = runs.join(Adapter, col(Adapter.run_id) == col(Run.id)).where(Adapter.status == AdapterStatus.CANDIDATE)
    return session.exec(untrained).first() or session.exec(candidates).first()


def open_run(
    session: Session,
    dataset: Dataset,
    base_model: str,
    recipe: Recipe,
    *,
    again: bool = False,
    share: float = 1.0,
    purpose: RunPurpose = RunPurpose.CANDIDATE,
) -> Run:
    """The run of this dataset, base, recipe and share of the rows: the known one, or a new one.

    One that failed is queued once more if `again`; else RunFailed is raised: it would fail the same way. A known trial becomes a
    candidate where one is asked for.
    """
    choices = recipe.hash() if share == 1 else hashlib.sha256(f"{recipe.hash()} {share}".encode()).hexdigest()
    known = session.exec(
        select(Run).where(Run.dataset_id == dataset.id, Run.base_model == base_model, Run.recipe_hash == choices)
    ).first()
    if known is not None:
        if known.status == RunStatus.FAILED and not again:
            raise RunFailed(f"these pairs were trained on before and it failed; ask for a training to try it again: {known.error}")
        if known.status == RunStatus.FAILED:
            known.status, known.error, known.attempts, known.finished_at = RunStatus.QUEUED, None, 0, None
        if purpose == RunPurpose.CANDIDATE and known.purpose != purpose:
            known.purpose = purpose
            if known.status == RunStatus.SUCCEEDED:
                known.status = RunStatus.QUEUED  # its training is at once at its end, if its folder is still there
        return known
    run = Run(
        task_id=dataset.task_id,
        dataset_id=dataset.id,
        base_model=base_model,
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=choices,
        share=share,
        purpose=purpose,
    )
    session.add(run)
    return run


def train(db: Database, run_id: str, base: Path, settings: DistillSettings, check: Callable[[], None]) -> Adapter:
    """Train a candidate's run (`complete`) and return its adapter's row; the existing one if there is."""
    complete(db, run_id, base, settings, check)
    with db.read() as session:
        return session.exec(select(Adapter).where(Adapter.run_id == run_id)).one()


def complete(db: Database, run_id: str, base: Path, settings: DistillSettings, check: Callable[[], None]) -> Run:
    """Train the run, from its last checkpoint if there is one, unless its adapter is there. A candidate's adapter gets a row.

    Progress goes into the run's row and its steps. `check` raises if this process must stop: the trainer is then killed.
    Raises RunFailed, or TrainerKilled for the first times that the trainer is killed and had got no further.
    """
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        if run.status == RunStatus.SUCCEEDED and (
            run.purpose == RunPurpose.CANDIDATE or (settings.run_folder(run.id) / "adapter").is_dir()
        ):
            return run
        if run.attempts >= MAX_ATTEMPTS:
            raise RunFailed(f"the trainer was killed {run.attempts} times and got no further; is there enough memory?")
        dataset = session.get_one(Dataset, run.dataset_id)
        run.status, run.started_at = RunStatus.RUNNING, run.started_at or now()
        reached = _reached(session, run_id)
    try:
        datasets.check_whole(dataset, settings)
    except datasets.Damaged as damaged:
        raise RunFailed(str(damaged)) from damaged
    out = settings.run_folder(run.id)
    try:
        out.mkdir(parents=True, exist_ok=True)
        command = _command(run, dataset, base, out, settings)
    except OSError as error:
        raise RunFailed(f"the run's folder cannot be written: {error}") from error
    try:
        ended = process.follow(command, "trainer", check, _Recorder(db, run_id))
    except process.ProcessKilled as killed:
        with db.begin() as session:
            run = session.get_one(Run, run_id)
            run.attempts = 1 if _reached(session, run_id) > reached else run.attempts + 1
        if run.attempts >= MAX_ATTEMPTS:
            raise RunFailed(f"{killed} (for the {run.attempts}th time at the same place; is there enough memory?)") from killed
        raise TrainerKilled(str(killed)) from killed
    except process.ProcessFailed as failed:
        raise RunFailed(str(failed)) from failed
    check()
    result = ended.result
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        run.status, run.finished_at, run.error = RunStatus.SUCCEEDED, now(), None
        run.train_seconds, run.rows_per_second, run.attempts = result["train_seconds"], result["rows_per_second"], 0
        run.step = result["steps"]  # what its last process told may not have been heard
        run.total_steps, run.loss = run.total_steps or run.step, result["final_loss"] if run.loss is None else run.loss
        losses = result["validation_losses"]
        run.validation_loss = result.get("served_loss") or (losses[result["best_epoch"] - 1] if losses else None)
        run.peak_memory, run.took = ended.peak_memory, _took(result, run.recipe["batch_rows"])
        if run.purpose == RunPurpose.CANDIDATE:
            register(session, run, settings)
    _sweep(out)
    return run


def register(session: Session, run: Run, settings: StoreSettings) -> Adapter:
    """The adapter's row of a run that is trained, made if there is none; the run is a candidate from now on. Raises RunFailed."""
    known = session.exec(select(Adapter).where(Adapter.run_id == run.id)).first()
    if known is not None:
        return known
    made = settings.run_folder(run.id) / "adapter"
    version = 1 + (session.exec(select(func.max(Adapter.version)).where(Adapter.task_id == run.task_id)).one() or 0)
    dataset = session.get_one(Dataset, run.dataset_id)
    if dataset.status == DatasetStatus.ERASED:
        raise RunFailed("something that it learned from was erased meanwhile")
    try:
        files, transform = lineage.seal(made, run, dataset)
    except OSError as error:
        raise RunFailed(f"the adapter's folder cannot be sealed: {error}") from error
    adapter = Adapter(
        id=f"{run.task_id}@v{version}",
        task_id=run.task_id,
        version=version,
        run_id=run.id,
        base_model=run.base_model,
        path=str(made.relative_to(settings.home_path)),
        sha256=files["adapter_model.safetensors"],
        files=files,
        transform=transform,
    )
    run.purpose = RunPurpose.CANDIDATE
    session.add(adapter)
    session.flush()
    card.publish(session, adapter, settings)
    audit.record(session, "distill", "adapter", adapter.id, {"run": run.id, "sha256": adapter.sha256})
    return adapter


def kept_epochs(run_id: str, settings: StoreSettings) -> list[int]:
    """The epochs of which the run has left an adapter (`keep_epochs` in its recipe)."""
    return sorted(int(each.name.partition("-")[2]) for each in settings.run_folder(run_id).glob("epoch-*"))


def take_epoch(session: Session, run: Run, epoch: int, settings: StoreSettings) -> Adapter:
    """Make a candidate of the adapter that a trained run has left of one of its epochs; the known one if there is.

    It is what a run of its own would leave, by a recipe that stops there. Raises RunFailed.
    """
    source = settings.run_folder(run.id) / f"epoch-{epoch}"
    if run.status != RunStatus.SUCCEEDED or run.share != 1 or not source.is_dir():
        raise RunFailed(f"{run.id} has left no adapter of epoch {epoch}; of these: {kept_epochs(run.id, settings) or 'none'}")
    choices = Recipe.model_validate(run.recipe | {"take_epoch": epoch, "keep_epochs": False})
    taken = open_run(session, session.get_one(Dataset, run.dataset_id), run.base_model, choices, again=True)
    session.flush()
    out = settings.run_folder(taken.id)
    if taken.status != RunStatus.SUCCEEDED:
        losses = (run.took or {}).get("validation_losses") or []
        taken.status, taken.started_at, taken.finished_at = RunStatus.SUCCEEDED, run.started_at, now()
        taken.step = taken.total_steps = round(run.total_steps / run.recipe["epochs"] * epoch)
        taken.loss, taken.rows_per_second = run.loss, run.rows_per_second
        taken.train_seconds, taken.peak_memory = (run.train_seconds or 0) * taken.step / max(1, run.step), run.peak_memory
        taken.validation_loss = losses[epoch - 1] if epoch <= len(losses) else None
        try:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(source, out / "adapter")
            if (transform := source.parent / prompts.TRANSFORM).is_file():
                shutil.copy(transform, out)
        except OSError as error:
            raise RunFailed(f"the epoch's adapter cannot be copied: {error}") from error
    return register(session, taken, settings)


def fail(db: Database, run_id: str, error: str, settings: DistillSettings) -> None:
    """End the run, say why, and delete what it has left if nothing knows of it."""
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        run.status, run.error, run.finished_at = RunStatus.FAILED, error, now()
        audit.record(session, "distill", "run failed", run.id, {"error": error})
        adapter = session.exec(select(Adapter.id).where(Adapter.run_id == run_id)).first()
    if adapter is None:
        shutil.rmtree(settings.run_folder(run_id), ignore_errors=True)


def discard(run: Run, settings: DistillSettings) -> None:
    """Delete what a run that is no candidate has left; its row stays."""
    if run.purpose != RunPurpose.CANDIDATE:
        shutil.rmtree(settings.run_folder(run.id), ignore_errors=True)


def _command(run: Run, dataset: Dataset, base: Path, out: Path, settings: DistillSettings) -> list[str | Path]:
    """The trainer's command line; writes the files it names."""
    data = settings.home_path / dataset.path
    recipe = out / "recipe.json"
    recipe.write_text(json.dumps(run.recipe))
    rows = data / "train.jsonl"
    if run.share < 1:
        rows = out / "train.jsonl"
        rows.write_bytes(b"".join(sample(data / "train.jsonl", run.share)))
    command: list[str | Path] = ["--base", base, "--data", rows, "--out", out, "--recipe", recipe, "--json"]
    if validation := validation_file(dataset, settings):
        command += ["--validation", validation]
    if transform := transform_file(run, dataset, settings):
        command += ["--transform", transform]
    return launch.command(settings, command)


def validation_file(dataset: Dataset, settings: DistillSettings) -> Path | None:
    """The dataset's validation rows; None if it has none."""
    file = settings.home_path / dataset.path / "validation.jsonl"
    return file if file.is_file() and file.stat().st_size else None


def transform_file(run: Run, dataset: Dataset, settings: DistillSettings) -> Path | None:
    """What the run's student is shown instead of the whole prompt, learned if need be; None: the whole. Raises RunFailed."""
    if not run.recipe.get("strip"):
        return None
    file = settings.run_folder(run.id) / prompts.TRANSFORM
    if not file.is_file():
        found = stripping.of_file(settings.home_path / dataset.path / "train.jsonl")
        if found is None:
            raise RunFailed("the prompts have no fixed part worth stripping")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(found.dump()))
        partial.replace(file)
    return file


def sample(data: Path, share: float) -> list[bytes]:
    """The lines of a share of a dataset's rows, in their order; a smaller share's are among a larger one's."""
    lines = data.read_bytes().splitlines(keepends=True)
    by_hash = sorted(range(len(lines)), key=lambda i: hashlib.sha256(lines[i]).digest())
    return [lines[i] for i in sorted(by_hash[: max(1, round(share * len(lines)))])]


def _took(result: dict[str, Any], batch_rows: int) -> dict[str, Any]:
    """What the trainer says of its work, to compare an estimate with."""
    epochs = result["steps"] / math.ceil(result["rows"] / batch_rows)
    looping = epochs * result["rows"] / result["rows_per_second"]
    kept = ("rows", "steps", "tokens", "computed_tokens", "validation_losses", "best_epoch", "dropped_rows")
    start = max(0.0, result["train_seconds"] - looping)
    return {**{name: result[name] for name in kept}, "epochs": epochs, "start_seconds": round(start, 3)}


class _Recorder:
    """Writes a trainer's progress into its run's rows, twice a second at most, and its end."""

    def __init__(self, db: Database, run_id: str) -> None:
        self._db, self._run_id, self._recorded = db, run_id, 0.0

    def __call__(self, progress: dict[str, Any]) -> None:
        worth = progress["step"] == progress["total_steps"] or progress.get("validation_loss") is not None
        if time.monotonic() - self._recorded <= RECORD_SECONDS and not worth:
            return
        with self._db.begin() as session:
            run = session.get_one(Run, self._run_id)
            run.step, run.total_steps = progress["step"], progress["total_steps"]
            run.loss, run.rows_per_second = progress["loss"], progress["rows_per_second"]
            run.validation_loss = progress.get("validation_loss") or run.validation_loss
            session.merge(
                RunStep(
                    run_id=self._run_id,
                    step=progress["step"],
                    loss=progress["loss"],
                    learning_rate=progress["learning_rate"],
                    rows_per_second=progress["rows_per_second"],
                )
            )
        self._recorded = time.monotonic()


def _sweep(out: Path) -> None:
    """Remove what only a training under way needs."""
    checkpoint.sweep(out)
    for left in (*out.glob(".meeting-*"), *out.glob("*.partial"), out / f".adapter-{card.CARD}", out / "train.jsonl"):
        left.unlink(missing_ok=True)


def _reached(session: Session, run_id: str) -> int:
    """The furthest step that the run was ever seen at."""
    return session.exec(select(func.max(RunStep.step)).where(RunStep.run_id == run_id)).one() or 0
