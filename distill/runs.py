"""Runs: one training of one dataset by one recipe, in a process of its own, from queued to an adapter's row."""

import hashlib
import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, func, select

from distill import datasets
from distill.recipe import Recipe
from distill.settings import DistillSettings
from store import audit, children
from store.columns import now
from store.session import Database
from store.states import AdapterStatus, RunStatus
from store.tables import Adapter, Dataset, Run, RunStep

MAX_ATTEMPTS = 5
RECORD_SECONDS = 0.5
CHECK_SECONDS = 0.5  # between two looks at whether to stop, however long the trainer is silent
GRACE_SECONDS = 12.0  # for the trainer to end its step and write a checkpoint
SIGTERMED = 143  # the trainer's exit code where it was told to stop, and has written a checkpoint


class RunFailed(Exception):
    """The training ended without an adapter; the message is the run's error."""


class TrainerKilled(Exception):
    """The trainer was killed from outside; turning again goes on from its last checkpoint."""


def unfinished(session: Session, task_id: str) -> Run | None:
    """A run of the task whose way to a verdict (or a refusal) is not at its end: one to be trained, else the latest candidate's."""
    runs = select(Run).where(Run.task_id == task_id).order_by(col(Run.created_at).desc())
    untrained = runs.where(col(Run.status).in_([RunStatus.QUEUED, RunStatus.RUNNING]))
    candidates = runs.join(Adapter, col(Adapter.run_id) == col(Run.id)).where(Adapter.status == AdapterStatus.CANDIDATE)
    return session.exec(untrained).first() or session.exec(candidates).first()


def open_run(session: Session, dataset: Dataset, base_model: str, recipe: Recipe, *, again: bool = False) -> Run:
    """The run of this dataset, base and recipe: the known one, or a new one.

    One that failed is queued once more if `again`; else RunFailed is raised: it would fail the same way.
    """
    known = session.exec(
        select(Run).where(Run.dataset_id == dataset.id, Run.base_model == base_model, Run.recipe_hash == recipe.hash())
    ).first()
    if known is not None:
        if known.status == RunStatus.FAILED and not again:
            raise RunFailed(f"these pairs were trained on before and it failed; ask for a training to try it again: {known.error}")
        if known.status == RunStatus.FAILED:
            known.status, known.error, known.attempts, known.finished_at = RunStatus.QUEUED, None, 0, None
        return known
    run = Run(
        task_id=dataset.task_id,
        dataset_id=dataset.id,
        base_model=base_model,
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe.hash(),
    )
    session.add(run)
    return run


def train(db: Database, run_id: str, base: Path, settings: DistillSettings, check: Callable[[], None]) -> Adapter:
    """Train the run, from its last checkpoint if there is one, and return its adapter's row; the existing one if there is.

    Progress goes into the run's row and its steps. `check` raises if this process must stop: the trainer is then killed.
    Raises RunFailed, or TrainerKilled for the first times that the trainer is killed and had got no further.
    """
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        if run.status == RunStatus.SUCCEEDED:
            return session.exec(select(Adapter).where(Adapter.run_id == run_id)).one()
        if run.attempts >= MAX_ATTEMPTS:
            raise RunFailed(f"the trainer was killed {run.attempts} times and got no further; is there enough memory?")
        dataset = session.get_one(Dataset, run.dataset_id)
        run.status, run.started_at = RunStatus.RUNNING, run.started_at or now()
        reached = _reached(session, run_id)
    try:
        datasets.check_whole(dataset, settings)
    except datasets.Damaged as damaged:
        raise RunFailed(str(damaged)) from damaged
    out = _folder(run, settings)
    out.mkdir(parents=True, exist_ok=True)
    recipe = out / "recipe.json"
    recipe.write_text(json.dumps(run.recipe))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "distill.train",
        "--base",
        base,
        "--data",
        settings.home_path / dataset.path / "train.jsonl",
    ]
    try:
        result = _follow(db, run_id, [*command, "--out", out, "--recipe", recipe, "--json"], check)
    except TrainerKilled as killed:
        with db.begin() as session:
            run = session.get_one(Run, run_id)
            run.attempts = 1 if _reached(session, run_id) > reached else run.attempts + 1
        if run.attempts >= MAX_ATTEMPTS:
            raise RunFailed(f"{killed} (for the {run.attempts}th time at the same place; is there enough memory?)") from killed
        raise
    check()
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        run.status, run.finished_at, run.error = RunStatus.SUCCEEDED, now(), None
        run.train_seconds, run.rows_per_second, run.attempts = result["train_seconds"], result["rows_per_second"], 0
        adapter = _register(session, run, Path(result["adapter"]), settings)
        audit.record(session, "distill", "adapter", adapter.id, {"run": run.id, "sha256": adapter.sha256})
    _sweep(out)
    return adapter


def fail(db: Database, run_id: str, error: str, settings: DistillSettings) -> None:
    """End the run without an adapter, say why, and delete its checkpoints."""
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        run.status, run.error, run.finished_at = RunStatus.FAILED, error, now()
        audit.record(session, "distill", "run failed", run.id, {"error": error})
    _sweep(_folder(run, settings))


def _folder(run: Run, settings: DistillSettings) -> Path:
    return settings.artifacts / run.task_id / "runs" / run.id


def _sweep(out: Path) -> None:
    """Remove what only a training under way needs."""
    for left in out.glob("checkpoint-*"):
        left.unlink(missing_ok=True)
    for left in out.glob(".adapter-*"):
        shutil.rmtree(left, ignore_errors=True)


def _reached(session: Session, run_id: str) -> int:
    """The furthest step that the run was ever seen at."""
    return session.exec(select(func.max(RunStep.step)).where(RunStep.run_id == run_id)).one() or 0


def _follow(db: Database, run_id: str, command: list[str | Path], check: Callable[[], None]) -> dict[str, Any]:
    """Run the trainer to its end, writing what it reports. Returns its result. `check` is called twice a second at least."""
    trainer = children.spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said: deque[str] = deque(maxlen=20)
    recorded = 0.0
    result: dict[str, Any] | None = None
    lines = _listen(trainer)
    try:
        while True:
            check()
            try:
                line = lines.get(timeout=CHECK_SECONDS)
            except queue.Empty:
                continue
            if line is None:
                break
            text = line.decode(errors="replace").rstrip()
            report = _report(text)
            if report is None:
                said.append(text)
                continue
            if "result" in report:
                result = report["result"]
            elif "error" in report:
                said.append(str(report["error"]))
            elif "progress" in report and (time.monotonic() - recorded > RECORD_SECONDS or _is_last(report["progress"])):
                _record(db, run_id, report["progress"])
                recorded = time.monotonic()
        code = trainer.wait()
    finally:
        children.stop(trainer, grace=GRACE_SECONDS)
    if code < 0 or code == SIGTERMED:
        raise TrainerKilled(f"the trainer was killed by signal {-code if code < 0 else code - 128}")
    if code != 0 or result is None:
        raise RunFailed("\n".join([f"the trainer ended with exit code {code}; its last words:", *said]))
    return result


def _listen(trainer: subprocess.Popen[bytes]) -> queue.SimpleQueue[bytes | None]:
    """What it prints, line by line, and None at its end; read by a thread, so that nobody is bound to wait for it."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def listen() -> None:
        assert trainer.stdout is not None
        with trainer.stdout as printed:
            for line in printed:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, name="trainer", daemon=True).start()
    return lines


def _report(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        report = json.loads(line)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None


def _is_last(progress: dict[str, Any]) -> bool:
    return bool(progress["step"] == progress["total_steps"])


def _record(db: Database, run_id: str, progress: dict[str, Any]) -> None:
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        run.step, run.total_steps = progress["step"], progress["total_steps"]
        run.loss, run.rows_per_second = progress["loss"], progress["rows_per_second"]
        session.merge(
            RunStep(
                run_id=run_id,
                step=progress["step"],
                loss=progress["loss"],
                learning_rate=progress["learning_rate"],
                rows_per_second=progress["rows_per_second"],
            )
        )


def _register(session: Session, run: Run, folder: Path, settings: DistillSettings) -> Adapter:
    version = 1 + (session.exec(select(func.max(Adapter.version)).where(Adapter.task_id == run.task_id)).one() or 0)
    adapter = Adapter(
        id=f"{run.task_id}@v{version}",
        task_id=run.task_id,
        version=version,
        run_id=run.id,
        base_model=run.base_model,
        path=str(folder.relative_to(settings.home_path)),
        sha256=hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(),
    )
    session.add(adapter)
    return adapter
