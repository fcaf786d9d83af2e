"""Tasks as people see and steer them: where each stands, who answers it, what happens next; name, status, policy."""

from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, Field, ValidationError
from sqlmodel import Session, col, func, select

from admin import pages
from admin.pages import Page
from admin.problems import INSTALL, Conflict, Invalid, NotFound
from store import audit, moves, policy
from store import tasks as identity
from store.columns import now
from store.policy import Policy
from store.states import Outcome, PairStatus, Split, TaskStatus
from store.tables import Capture, Pair, Route, Task, TaskAlias, TaskTemplate, Verdict

_NAMED = 20  # tasks that an error names
_LEAST, _LOOKED_AT = 3, 500  # characters of a text that divides a task; captures in which it is looked for


class PairCounts(BaseModel):
    """How many pairs a task has, of each sort."""

    train: int = 0
    validation: int = 0
    holdout: int = 0
    excluded: int = 0


class VerdictOf(BaseModel, from_attributes=True):
    """The gate's latest word on a task."""

    adapter_id: str
    outcome: Outcome
    reason: str
    created_at: datetime


class TaskLine(BaseModel, from_attributes=True):
    """A task in a listing."""

    id: str
    name: str
    status: TaskStatus
    teacher_model: str
    created_at: datetime
    captures: int = 0
    pairs: PairCounts = PairCounts()
    incumbent: str | None = Field(None, description="The adapter that answers; none: the teacher.")
    holdback: float | None = Field(None, description="The share of requests that the teacher keeps, where an adapter answers.")
    verdict: VerdictOf | None = None
    next: str = Field("", description="What happens next, in words.")


class TaskDetail(TaskLine):
    """A task with what it was made of and what its owner decided."""

    system: str = Field(description="Its system message; where that varies, what does not.")
    template: list[str] = Field([], description="What requests are known by that have other keys: these texts, in this order.")
    merged: int = Field(0, description="Keys and tasks that were merged into it.")
    parts: list[str] = Field([], description="Names of tasks that were divided from it.")
    policy: Policy | None = Field(description="What holds, defaults and decisions together; none: see `next`.")
    decided: dict[str, Any] = Field(description="What its owner decided otherwise than the defaults.")
    train_asked_at: datetime | None


def listing(session: Session, *, after: str | None = None, limit: int = 50) -> Page[TaskLine]:
    """A page of tasks, newest first."""
    rows, more = pages.fetch(session, select(Task), Task, after=after, limit=limit)
    return Page(data=_lines(session, rows), has_more=more)


def busiest(session: Session, limit: int) -> tuple[list[TaskLine], bool]:
    """The tasks with the most captures, and whether there are others: a fleeting task must not hide a busy one."""
    counts = select(Capture.task_id, func.count().label("number")).group_by(col(Capture.task_id)).subquery()
    query = (
        select(Task)
        .outerjoin(counts, counts.c.task_id == col(Task.id))
        .order_by(func.coalesce(counts.c.number, 0).desc(), col(Task.id))
    )
    rows = session.exec(query.limit(limit + 1)).all()
    return _lines(session, rows[:limit]), len(rows) > limit


def one(session: Session, name_or_id: str) -> TaskDetail:
    """A task with its policy. Raises NotFound."""
    task = find(session, name_or_id)
    return TaskDetail(
        **_lines(session, [task])[0].model_dump(),
        system=task.system,
        **_known_by(session, task.id),
        policy=None if _unusable(task) else policy.of(task),
        decided=task.policy,
        train_asked_at=task.train_asked_at,
    )


def find(session: Session, name_or_id: str) -> Task:
    """A task by name or id. Raises NotFound, which says what tasks there are."""
    task = identity.find(session, name_or_id)
    if task is None:
        names = session.exec(select(Task.name).order_by(col(Task.created_at).desc()).limit(_NAMED + 1)).all()
        known = f"There are: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}. `stillroom tasks` lists them."
        none = "There are no tasks yet: send a request through the proxy, or import recorded ones with `stillroom import FILE`."
        raise NotFound(f"There is no task {name_or_id!r}. {known if names else none}", "unknown_task")
    return task


def rename(session: Session, name_or_id: str, name: str, *, by: str) -> Task:
    """Give a task another name; its id stays. Raises NotFound, Invalid, Conflict.

    Requests that name the task keep finding it by the name they always used: that name is in its id.
    """
    task = find(session, name_or_id)
    if not identity.NAME.fullmatch(name):
        raise Invalid(str(identity.BadTaskName(name)), "bad_task_name")
    other = identity.find(session, name)
    if other is not None and other.id != task.id:
        raise Conflict(f"There is another task called {name!r} ({other.id}). Take another name, or rename that one.", "name_taken")
    if task.name != name:
        audit.record(session, by, "task renamed", task.id, {"from": task.name, "to": name})
        task.name, task.steered_at = name, now()
    return task


def merge(session: Session, kept: str, others: Sequence[str], *, by: str, why: str = "") -> Task:
    """From now on the requests of the others, and their captures, are the first one's. Raises NotFound, Invalid, Conflict."""
    task = find(session, kept)
    away = {found.id: found for found in (find(session, each) for each in others)}
    if not away:
        raise Invalid("Name at least two tasks: the one that stays, then those that are merged into it.", "nothing_to_merge")
    if task.id in away:
        raise Invalid(f"{task.name} cannot be merged into itself.", "same_task")
    try:
        moves.merge(session, task, list(away.values()), by=by, why=why)
    except moves.Busy as busy:
        name = away[busy.args[0]].name
        raise Conflict(
            f"{name} is being trained or judged: it can be merged when that is at its end. `stillroom runs` shows how far it is.",
            "busy",
        ) from busy
    task.steered_at = now()
    return task


def split(session: Session, name_or_id: str, containing: str, name: str, *, by: str) -> Task:
    """Make a task of those requests that have a text in their system message or first user message. Returns the new one.

    Requests go there within a second; captures follow in the background. Raises NotFound, Invalid, Conflict.
    """
    task = find(session, name_or_id)
    text = containing.replace("\0", "")
    if len(text.strip()) < _LEAST:
        raise Invalid(f"The text must have at least {_LEAST} characters.", "text_too_short")
    if not identity.NAME.fullmatch(name):
        raise Invalid(str(identity.BadTaskName(name)), "bad_task_name")
    if (other := identity.find(session, name)) is not None:
        raise Conflict(f"There is a task called {name!r} already ({other.id}). Take another name.", "name_taken")
    newest = select(Capture).where(Capture.task_id == task.id).order_by(col(Capture.id).desc())
    latest = session.exec(newest.limit(_LOOKED_AT)).all()
    having = sum(any(text in each for each in moves.texts_of(capture) or ()) for capture in latest)
    if latest and having in (0, len(latest)):
        what = "None" if having == 0 else "Each"
        raise Invalid(f"{what} of the last {len(latest)} captures of {task.name} has this text: it divides nothing.", "no_part")
    named = identity.Identity(identity.identify({}, name).id, name, task.teacher_model, task.system)
    part = moves.part(session, task, named)
    moves.divide(session, task, part, text, by=by)
    return part


def decide(session: Session, name_or_id: str, changes: dict[str, Any], *, by: str) -> Task:
    """Change a task's policy, key by key; None takes a key back to its default. Raises NotFound, Invalid (nothing is changed)."""
    task = find(session, name_or_id)
    wanted = {**task.policy, **changes}
    for key in {*Policy.model_fields, *task.policy}:
        if wanted.get(key) is None:
            wanted.pop(key, None)
    try:
        decided = Policy.model_validate(wanted)
    except ValidationError as error:
        keys = ", ".join(Policy.model_fields)
        raise Invalid(f"The policy is unchanged: {_reasons(error)}. The keys are {keys}.", "bad_policy") from error
    if decided.cron is not None:
        _check_cron(decided.cron)
    if decided.redact and find_spec("presidio_analyzer") is None:
        raise Invalid("Personal data can only be replaced where `pip install 'stillroom[pii]'` has been done.", "not_installed")
    before, task.policy, task.steered_at = task.policy, decided.model_dump(mode="json", exclude_defaults=True), now()
    audit.record(session, by, "policy changed", task.id, {"from": before, "to": task.policy})
    return task


def set_status(session: Session, name_or_id: str, status: TaskStatus, *, by: str) -> Task:
    """Pause, resume or ignore. An ignored task goes back to the teacher at once. Raises NotFound."""
    task = find(session, name_or_id)
    if task.status == status:
        return task
    audit.record(session, by, "task status changed", task.id, {"from": task.status, "to": status})
    task.status, task.steered_at = status, now()
    route = session.get(Route, task.id)
    if status == TaskStatus.IGNORED and route is not None and route.adapter_id is not None:
        from serving import rollout

        rollout.rollback(session, task.id, by=by, why="the task is ignored")
    return task


def next_step(session: Session, task: Task) -> str:
    """What happens next with a task, in words."""
    if task.status == TaskStatus.IGNORED:
        return task.status.sentence
    if unusable := _unusable(task):
        return unusable
    from distill import due as wheel

    try:
        due = wheel.decide(session, task, now())
    except ModuleNotFoundError:
        return "by its timetable, which is read where distill is installed"
    return f"trains now: {due.why}" if due.now else due.why


def check_policy(task: Task) -> None:
    """Raises Conflict, with what to do, if the task's row holds what a policy cannot."""
    if unusable := _unusable(task):
        raise Conflict(f"{task.name}: {unusable}", "bad_policy")


def _unusable(task: Task) -> str | None:
    try:
        policy.of(task)
    except ValidationError as error:
        return f"its policy cannot be used: {_reasons(error)}. `stillroom task set NAME KEY=` takes a key back to its default."
    return None


def _known_by(session: Session, task_id: str) -> dict[str, Any]:
    templates = session.exec(select(TaskTemplate).where(TaskTemplate.task_id == task_id).order_by(col(TaskTemplate.id))).all()
    merged = select(func.count()).select_from(TaskAlias).where(TaskAlias.task_id == task_id, TaskAlias.id != task_id)
    parts = select(Task.name).join(TaskTemplate, col(TaskTemplate.task_id) == col(Task.id)).where(TaskTemplate.scope == task_id)
    return {
        "template": next((row.segments for row in templates if row.segments), []),
        "merged": session.exec(merged).one(),
        "parts": sorted(set(session.exec(parts))),
    }


def _lines(session: Session, tasks: Sequence[Task]) -> list[TaskLine]:
    ids = [task.id for task in tasks]
    captures = dict(session.exec(_counts(Capture.task_id, ids)).all())
    pairs = _pair_counts(session, ids)
    routes = {row.task_id: row for row in session.exec(select(Route).where(col(Route.task_id).in_(ids)))}
    found = []
    for task in tasks:
        line, route = TaskLine.model_validate(task), routes.get(task.id)
        line.captures, line.pairs = captures.get(task.id, 0), pairs[task.id]
        if route is not None and route.adapter_id is not None:
            line.incumbent, line.holdback = route.adapter_id, route.holdback
        newest = select(Verdict).where(Verdict.task_id == task.id).order_by(col(Verdict.created_at).desc(), col(Verdict.id).desc())
        verdict = session.exec(newest.limit(1)).first()
        line.verdict = VerdictOf.model_validate(verdict) if verdict else None
        line.next = next_step(session, task)
        found.append(line)
    return found


def _pair_counts(session: Session, task_ids: Sequence[str]) -> dict[str, PairCounts]:
    found = {task_id: PairCounts() for task_id in task_ids}
    rows = session.exec(
        select(Pair.task_id, Pair.status, Pair.split, func.count())
        .where(col(Pair.task_id).in_(task_ids))
        .group_by(col(Pair.task_id), col(Pair.status), col(Pair.split))
    )
    for task_id, status, split, number in rows:
        kind = "excluded" if status != PairStatus.READY else str(split or Split.TRAIN)
        setattr(found[task_id], kind, getattr(found[task_id], kind) + number)
    return found


def _counts(column: Any, ids: Sequence[str]) -> Any:
    return sa.select(column, func.count()).where(col(column).in_(ids)).group_by(column)


def _reasons(error: ValidationError) -> str:
    return "; ".join(_reason(each["loc"], each["msg"]) for each in error.errors())


def _reason(where: tuple[int | str, ...], message: str) -> str:
    key = ".".join(map(str, where))
    return f"{key!r} is no key of a policy" if message.startswith("Extra inputs") else f"{key}: {message}"


def _check_cron(line: str) -> None:
    try:
        from apscheduler.triggers.cron import CronTrigger
    except ModuleNotFoundError:
        raise Invalid(f"A timetable can only be set where training is installed; {INSTALL}", "not_installed") from None
    try:
        CronTrigger.from_crontab(line)
    except ValueError as error:
        raise Invalid(
            f"cron: {line!r} is no crontab line ({error}). Five fields, minute hour day month weekday, such as '0 3 * * *'.",
            "bad_policy",
        ) from error
