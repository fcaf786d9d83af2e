"""Trainings and evaluations as people see them: a run with its progress and loss curve, an evaluation with its items."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, Field
from sqlmodel import Session, col, func, select

from admin import adapters, captures, pages
from admin.adapters import AdapterLine
from admin.pages import Page
from admin.problems import Conflict, NotFound
from distill import runs
from store import audit
from store.columns import now
from store.settings import StoreSettings
from store.states import EvaluationStatus, Outcome, RunPurpose, RunStatus
from store.tables import Adapter, Capture, Evaluation, EvaluationItem, Message, Pair, Run, RunStep, Verdict


class RunLine(BaseModel, from_attributes=True):
    """A run in a listing."""

    id: str
    created_at: datetime
    task_id: str
    task: str = Field("", description="The task's name.")
    dataset_id: str
    base_model: str
    purpose: RunPurpose
    share: float = Field(description="Of the dataset's training rows.")
    status: RunStatus
    step: int
    total_steps: int
    progress: float = Field(0.0, description="Share of its steps that are done, 0 to 1.")
    seconds_left: float | None = Field(None, description="At the pace of its steps so far, while it runs.")
    loss: float | None
    validation_loss: float | None = Field(description="Nats a token, of the adapter.")
    rows_per_second: float | None
    train_seconds: float | None
    estimated_seconds: float | None = Field(None, description="What it was expected to take, before it began.")
    peak_memory: int | None = Field(description="Bytes.")
    estimated_memory: int | None = None
    attempts: int
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None


class CurvePoint(BaseModel, from_attributes=True):
    """A point of a loss curve."""

    step: int
    loss: float
    learning_rate: float
    rows_per_second: float
    created_at: datetime


class RunDetail(RunLine):
    """A run with its recipe, curve and adapter."""

    recipe: dict[str, Any]
    estimate: dict[str, Any] | None = Field(
        description="Made before it began: seconds, memory, money, tokens, and the pace behind them."
    )
    took: dict[str, Any] | None = Field(description="What the trainer says of its work.")
    score: dict[str, Any] | None = Field(description="On the validation rows.")
    adapter_id: str | None
    curve: list[CurvePoint]
    epochs: list[int] = Field([], description="Of which it has left an adapter that can be judged too.")


class EvaluationLine(BaseModel, from_attributes=True):
    """An evaluation in a listing."""

    id: str
    created_at: datetime
    task_id: str
    task: str = Field("", description="The task's name.")
    adapter_id: str
    dataset_id: str
    status: EvaluationStatus
    kind: str
    answered: int
    total: int
    agreed: int = Field(0, description="Answers so far that agree with the teacher's.")
    hard_errors: int = Field(0, description="Answers so far that agree with nothing the teacher said.")
    outcome: Outcome | None = Field(None, description="The gate's verdict.")
    reason: str | None = None
    error: str | None
    finished_at: datetime | None


class EvaluationDetail(EvaluationLine):
    """An evaluation with a page of its items."""

    items: "Page[Item]"


class Item(BaseModel, from_attributes=True):
    """One held-out prompt: what the teacher said (t0; asked again: t1, t2) and what the student said (s)."""

    pair_id: str
    prompt: str = ""
    t0: Message
    t1: Message | None
    t2: Message | None
    s: Message | None
    agrees: bool
    teacher_agrees: bool | None
    stable: bool
    hard_error: bool
    latency_ms: float | None
    error: str | None


def listing(
    session: Session,
    *,
    task_id: str | None = None,
    status: RunStatus | None = None,
    purpose: RunPurpose | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Page[RunLine]:
    """A page of runs, newest first."""
    query = select(Run)
    if task_id is not None:
        query = query.where(Run.task_id == task_id)
    if status is not None:
        query = query.where(Run.status == status)
    if purpose is not None:
        query = query.where(Run.purpose == purpose)
    rows, more = pages.fetch(session, query, Run, after=after, limit=limit)
    names = captures.task_names(session, {row.task_id for row in rows})
    return Page(data=[_run_line(row, names) for row in rows], has_more=more)


def one(session: Session, run_id: str, settings: StoreSettings) -> RunDetail:
    """A run with its loss curve. Raises NotFound."""
    run = _find(session, run_id)
    curve = session.exec(select(RunStep).where(RunStep.run_id == run.id).order_by(col(RunStep.step)))
    return RunDetail(
        **_run_line(run, captures.task_names(session, {run.task_id})).model_dump(),
        recipe=run.recipe,
        estimate=run.estimate,
        took=run.took,
        score=run.score,
        adapter_id=session.exec(select(Adapter.id).where(Adapter.run_id == run.id)).first(),
        curve=[CurvePoint.model_validate(point) for point in curve],
        epochs=runs.kept_epochs(run.id, settings),
    )


def take_epoch(session: Session, run_id: str, epoch: int, settings: StoreSettings, *, by: str, why: str = "") -> AdapterLine:
    """Have the adapter of one of a run's epochs judged as a candidate. Raises NotFound, Conflict."""
    run = _find(session, run_id)
    try:
        adapter = runs.take_epoch(session, run, epoch, settings)
    except runs.RunFailed as failed:
        raise Conflict(f"That epoch cannot be judged: {failed}.", "no_such_epoch") from failed
    audit.record(session, by, "epoch taken", adapter.id, {"run": run.id, "epoch": epoch, "why": why})
    return adapters.one(session, adapter.id)


def _find(session: Session, run_id: str) -> Run:
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id!r}. `stillroom runs` lists them.", "unknown_run")
    return run


def evaluations(session: Session, *, task_id: str | None = None, after: str | None = None, limit: int = 50) -> Page[EvaluationLine]:
    """A page of evaluations, newest first."""
    query = select(Evaluation) if task_id is None else select(Evaluation).where(Evaluation.task_id == task_id)
    rows, more = pages.fetch(session, query, Evaluation, after=after, limit=limit)
    return Page(data=_evaluation_lines(session, rows), has_more=more)


def evaluation(session: Session, evaluation_id: str) -> EvaluationLine:
    """One evaluation. Raises NotFound."""
    row = session.get(Evaluation, evaluation_id)
    if row is None:
        raise NotFound(f"There is no evaluation {evaluation_id!r}. `stillroom evaluations` lists them.", "unknown_evaluation")
    return _evaluation_lines(session, [row])[0]


def items(session: Session, evaluation_id: str, *, after: str | None = None, limit: int = 50) -> Page[Item]:
    """A page of an evaluation's items, disagreements first; `after` is a pair's id. Raises NotFound."""
    evaluation(session, evaluation_id)
    query = select(EvaluationItem).where(EvaluationItem.evaluation_id == evaluation_id)
    rows, more = pages.fetch(
        session,
        query,
        EvaluationItem,
        after=after,
        limit=limit,
        by=("agrees", "pair_id"),
        descending=False,
        find={"evaluation_id": evaluation_id},
    )
    asked = select(Pair.id, Capture).join(Capture, col(Capture.id) == col(Pair.capture_id))
    found_for = session.exec(asked.where(col(Pair.id).in_([row.pair_id for row in rows]))).all()
    prompts = {pair_id: capture.prompt_text for pair_id, capture in found_for}
    found = [Item.model_validate(row) for row in rows]
    for item in found:
        item.prompt = prompts.get(item.pair_id, "")[: captures.EXCERPT]
    return Page(data=found, has_more=more)


def _run_line(run: Run, names: dict[str, str]) -> RunLine:
    line = RunLine.model_validate(run)
    line.task = names.get(run.task_id, "")
    if run.estimate is not None:
        line.estimated_seconds, line.estimated_memory = run.estimate["seconds"], run.estimate["peak_memory"]
    line.progress = 1.0 if run.status == RunStatus.SUCCEEDED else round(run.step / run.total_steps, 4) if run.total_steps else 0.0
    if run.status == RunStatus.RUNNING and run.started_at is not None and run.step:
        line.seconds_left = round((now() - run.started_at).total_seconds() / run.step * (run.total_steps - run.step), 1)
    return line


def _evaluation_lines(session: Session, rows: list[Evaluation]) -> list[EvaluationLine]:
    ids = [row.id for row in rows]
    counted = session.exec(
        select(
            EvaluationItem.evaluation_id,
            func.sum(sa.case((col(EvaluationItem.agrees), 1), else_=0)),
            func.sum(sa.case((col(EvaluationItem.hard_error), 1), else_=0)),
        )
        .where(col(EvaluationItem.evaluation_id).in_(ids))
        .group_by(col(EvaluationItem.evaluation_id))
    )
    counts = {evaluation_id: (agreed, hard) for evaluation_id, agreed, hard in counted}
    verdicts = {v.evaluation_id: v for v in session.exec(select(Verdict).where(col(Verdict.evaluation_id).in_(ids)))}
    names = captures.task_names(session, {row.task_id for row in rows})
    found = []
    for row in rows:
        line, verdict = EvaluationLine.model_validate(row), verdicts.get(row.id)
        line.task = names.get(row.task_id, "")
        line.agreed, line.hard_errors = counts.get(row.id, (0, 0))
        if verdict is not None:
            line.outcome, line.reason = verdict.outcome, verdict.reason
        found.append(line)
    return found
