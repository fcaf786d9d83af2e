"""Runs: one training of one dataset by one recipe, in a process of its own, from queued to an adapter's row."""

import hashlib
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, func, select

from distill.recipe import Recipe
from distill.settings import DistillSettings
from store import audit, children
from store.columns import now
from store.session import Database
from store.states import AdapterStatus, RunStatus
from store.tables import Adapter, Dataset, Run, RunStep

MAX_ATTEMPTS = 5
RECORD_SECONDS = 0.5


class RunFailed(Exception):
    """The training ended without an adapter; the message is the run's error."""


class TrainerKilled(Exception):
    """The trainer was killed from outside; turning again goes on from its last checkpoint."""


def unfinished(session: Session, task_id: str) -> Run | None:
    """The task's latest run, if its way to a verdict (or a refusal) is not at its end."""
    run = session.exec(select(Run).where(Run.task_id == task_id).order_by(col(Run.created_at).desc())).first()
    if run is None or run.status == RunStatus.FAILED:
        return None
    if run.status != RunStatus.SUCCEEDED:
        return run
    adapter = session.exec(select(Adapter).where(Adapter.run_id == run.id)).one()
    return run if adapter.status == AdapterStatus.CANDIDATE else None


def open_run(session: Session, dataset: Dataset, base_model: str, recipe: Recipe) -> Run:
    """The run of this dataset, base and recipe: the known one (queued again if it had failed), or a new one."""
    known = session.exec(
        select(Run).where(Run.dataset_id == dataset.id, Run.base_model == base_model, Run.recipe_hash == recipe.hash())
    ).first()
    if known is not None:
        if known.status == RunStatus.FAILED:
            known.status, known.error, known.attempts = RunStatus.QUEUED, None, 0
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
    Raises RunFailed, or TrainerKilled for the first times that the trainer is killed.
    """
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        if run.status == RunStatus.SUCCEEDED:
            return session.exec(select(Adapter).where(Adapter.run_id == run_id)).one()
        dataset = session.get_one(Dataset, run.dataset_id)
        run.status, run.started_at, run.attempts = RunStatus.RUNNING, run.started_at or now(), run.attempts + 1
    out = settings.artifacts / run.task_id / "runs" / run.id
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
        if run.attempts >= MAX_ATTEMPTS:
            raise RunFailed(f"{killed} (for the {run.attempts}th time; is there enough memory?)") from killed
        raise
    check()
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        run.status, run.finished_at, run.error = RunStatus.SUCCEEDED, now(), None
        run.train_seconds, run.rows_per_second = result["train_seconds"], result["rows_per_second"]
        adapter = _register(session, run, Path(result["adapter"]), settings)
        audit.record(session, "distill", "adapter", adapter.id, {"run": run.id, "sha256": adapter.sha256})
    return adapter


def fail(db: Database, run_id: str, error: str) -> None:
    """End the run without an adapter, and say why."""
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        run.status, run.error, run.finished_at = RunStatus.FAILED, error, now()
        audit.record(session, "distill", "run failed", run.id, {"error": error})


def _follow(db: Database, run_id: str, command: list[str | Path], check: Callable[[], None]) -> dict[str, Any]:
    """Run the trainer to its end, writing what it reports. Returns its result."""
    trainer = children.spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said: deque[str] = deque(maxlen=20)
    recorded = 0.0
    result: dict[str, Any] | None = None
    assert trainer.stdout is not None
    try:
        for line in trainer.stdout:
            text = line.decode(errors="replace").rstrip()
            report = _report(text)
            if report is None:
                said.append(text)
                continue
            check()
            if "result" in report:
                result = report["result"]
            elif "error" in report:
                said.append(str(report["error"]))
            elif "progress" in report and (time.monotonic() - recorded > RECORD_SECONDS or _is_last(report["progress"])):
                _record(db, run_id, report["progress"])
                recorded = time.monotonic()
        code = trainer.wait()
    finally:
        children.stop(trainer, grace=5)  # time to write a checkpoint
    if code < 0:
        raise TrainerKilled(f"the trainer was killed by signal {-code}")
    if code != 0 or result is None:
        raise RunFailed("\n".join([f"the trainer ended with exit code {code}; its last words:", *said]))
    return result


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
