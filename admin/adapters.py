"""Adapters as people see them, and what people may decide: train now, promote, take back."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from admin import captures, pages, tasks
from admin.pages import Page
from admin.problems import Conflict, Invalid, NotFound
from store import tasks as identity
from store.states import AdapterStatus, Outcome, RolloutStage, TaskStatus
from store.tables import Adapter, Rollout, Route, Task, Verdict


class AdapterLine(BaseModel, from_attributes=True):
    """An adapter: where it comes from, what the gate said, where it is."""

    id: str
    created_at: datetime
    task_id: str
    task: str = Field("", description="The task's name.")
    version: int
    run_id: str
    base_model: str
    path: str
    sha256: str
    status: AdapterStatus
    outcome: Outcome | None = Field(None, description="The gate's verdict.")
    stage: RolloutStage | None = Field(None, description="How far it is on its way into traffic.")
    detail: str = Field("", description="Why it is at that stage.")
    stale_since: datetime | None = Field(None, description="Since when something that it learned from is erased: train again.")
    stripped: bool = Field(False, description="Whether it is shown requests without the fixed part of their prompts.")
    live: bool = Field(False, description="Whether the route points at it.")


class Promotion(BaseModel):
    """What became of the wish to promote."""

    adapter_id: str
    task_id: str
    live: bool = Field(description="Whether it answers now; else as soon as vLLM has loaded it.")
    holdback: float | None = Field(description="The share that the teacher keeps, once it is live.")


def listing(
    session: Session, *, task_id: str | None = None, status: AdapterStatus | None = None, after: str | None = None, limit: int = 50
) -> Page[AdapterLine]:
    """A page of adapters, newest first."""
    query = select(Adapter)
    if task_id is not None:
        query = query.where(Adapter.task_id == task_id)
    if status is not None:
        query = query.where(Adapter.status == status)
    rows, more = pages.fetch(session, query, Adapter, after=after, limit=limit)
    return Page(data=lines(session, rows), has_more=more)


def one(session: Session, adapter_id: str) -> AdapterLine:
    """One adapter. Raises NotFound."""
    row = session.get(Adapter, adapter_id)
    if row is None:
        raise NotFound(f"There is no adapter {adapter_id!r}. `stillroom adapters` lists them.", "unknown_adapter")
    return lines(session, [row])[0]


def train(session: Session, name_or_id: str, *, by: str) -> Task:
    """Ask for a training now; distill does it, wherever it runs. Raises NotFound; Conflict if it cannot be."""
    from distill import datasets, due

    task = tasks.find(session, name_or_id)
    if task.status == TaskStatus.IGNORED:
        raise Conflict(f"{task.name} cannot be trained: the task is ignored: `stillroom task resume {task.name}` first.", "ignored")
    tasks.check_policy(task)
    try:
        due.ask(session, task.id, by)
    except datasets.NotTrainable as reason:
        raise Conflict(f"{task.name} cannot be trained: {reason}", "not_trainable") from reason
    return task


def promote(session: Session, adapter_or_task: str, *, by: str, why: str, holdback: float | None = None) -> Promotion:
    """Point an adapter's task at it; of a task, its latest accepted adapter. With or without the gate's word.

    Where vLLM does not have it loaded, it is loaded first. Raises NotFound, Conflict, Invalid for a holdback outside 0 to 1.
    """
    from serving import rollout

    adapter = session.get(Adapter, adapter_or_task) or _accepted(session, adapter_or_task)
    if holdback is not None and not 0 <= holdback <= 1:
        raise Invalid(f"The holdback is a share, 0 to 1, not {holdback}.", "bad_holdback")
    try:
        route = rollout.request_promotion(session, adapter.id, by=by, why=why, holdback=holdback)
    except rollout.NotReady as reason:
        raise Conflict(f"{adapter.id} cannot be promoted: {reason}", "not_ready") from reason
    return Promotion(
        adapter_id=adapter.id, task_id=adapter.task_id, live=route is not None, holdback=route.holdback if route else None
    )


def rollback(session: Session, name_or_id: str, *, by: str, why: str) -> Task:
    """Give a task back to the teacher; a promotion that waits is given up too. Raises NotFound."""
    from serving import rollout

    task = tasks.find(session, name_or_id)
    rollout.rollback(session, task.id, by=by, why=why)
    return task


def _accepted(session: Session, name_or_id: str) -> Adapter:
    task = identity.find(session, name_or_id)
    if task is None:
        raise NotFound(
            f"There is no adapter and no task {name_or_id!r}. `stillroom adapters` and `stillroom tasks` list them.",
            "unknown_adapter",
        )
    ours = session.exec(select(Adapter).where(Adapter.task_id == task.id).order_by(col(Adapter.version).desc())).all()
    accepted = next((each for each in ours if each.status == AdapterStatus.ACCEPTED), None)
    if accepted is None:
        others = f"Name one to promote it all the same: {', '.join(each.id for each in ours[:5])}." if ours else "It has none yet."
        raise Conflict(f"{task.name} has no adapter that passed the gate. {others}", "nothing_accepted")
    return accepted


def lines(session: Session, rows: Sequence[Adapter]) -> list[AdapterLine]:
    """Adapters with their verdicts, stages and routes."""
    ids = [row.id for row in rows]
    names = captures.task_names(session, {row.task_id for row in rows})
    verdicts = {row.adapter_id: row.outcome for row in session.exec(select(Verdict).where(col(Verdict.adapter_id).in_(ids)))}
    rollouts = {row.adapter_id: row for row in session.exec(select(Rollout).where(col(Rollout.adapter_id).in_(ids)))}
    live = set(session.exec(select(Route.adapter_id).where(col(Route.adapter_id).in_(ids))).all())
    found = []
    for row in rows:
        line, rollout = AdapterLine.model_validate(row), rollouts.get(row.id)
        line.task, line.live = names.get(row.task_id, ""), row.id in live
        line.outcome, line.stripped = verdicts.get(row.id), row.transform is not None
        if rollout is not None:
            line.stage, line.detail = rollout.stage, rollout.detail
        found.append(line)
    return found
