"""Captures, and all that was made of them, from one task to another: tasks merged into one, and one divided into parts.

Who merges or divides decides here, in one transaction, by rows that the proxies read; nothing is copied. A merge changes the kinds
of captures, of which there are few; a part's captures are moved some hundred at a time, which can stop anywhere and go on.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, SQLModel, col, func, select

from store import audit, captures, keys, routes, tasks
from store.blobs import BadFrame
from store.capture import KINDS, ROWS
from store.chat import as_chat
from store.columns import now
from store.states import AdapterStatus, PairStatus, RolloutStage, RunStatus, SearchStatus
from store.tables import (
    Adapter,
    Capture,
    Clustering,
    DatasetPair,
    EvaluationItem,
    LearningCurve,
    Pair,
    Rollout,
    Route,
    Run,
    Search,
    Task,
    TaskAlias,
    TaskTemplate,
    VirtualKey,
)
from store.tasks import Identity
from store.templates import ANY, Directory

_AT_ONCE = 500  # values in one statement
#: Tables with a task's rows that go along as they are; what is not here is seen to below.
_OTHERS = {"tasks", "task_aliases", "task_templates", "captures", "capture_kinds", "dictionaries", "pairs", "adapters", "routes"}
_OTHERS |= {"pair_sketches", "clusterings"}


class Busy(Exception):
    """A task cannot be merged away while something is being trained, evaluated or judged for it."""


def merge(session: Session, kept: Task, others: Sequence[Task], *, by: str, why: str = "") -> None:
    """From now on the requests of the others, and all that there is of them, are `kept`'s; the others' rows go.

    What was learned from stays as it was learned from; of their other pairs new ones are made in `kept`. An adapter that answers
    for one of them answers for `kept` if that has none, else it is retired. Raises Busy; nothing is changed then.
    """
    ids = [task.id for task in others]
    if kept.id in ids:
        raise ValueError("a task cannot be merged into itself")
    busy = [task_id for some in _chunks(ids) for task_id in _busy(session, some)]
    if busy:
        raise Busy(busy[0])
    trained = [task_id for some in _chunks(ids) for task_id in session.exec(_of(Adapter.task_id, some).distinct())]
    retired = [adapter_id for task_id in trained if (adapter_id := _move_adapters(session, kept.id, task_id, by)) is not None]
    for some in _chunks(ids):
        _move_pairs(session, kept.id, sa.select(col(Pair.id)).where(col(Pair.task_id).in_(some)))
        changed = {"task_id": kept.id, "digest": None}  # the digest was of another task's kind
        session.execute(sa.update(KINDS).where(KINDS.c.task_id.in_(some)).values(changed))
        for table in SQLModel.metadata.sorted_tables:
            if table.name not in _OTHERS and "task_id" in table.c:
                session.execute(sa.update(table).where(table.c.task_id.in_(some)).values(task_id=kept.id))
        _move_names(session, kept.id, some, by)
    _widen_keys(session, kept.id, set(ids))
    session.execute(
        sa.insert(TaskAlias),
        [{"id": t.id, "name": _given(t), "task_id": kept.id, "changed_by": by, "changed_at": now()} for t in others],
    )
    for some in _chunks(ids):
        session.execute(sa.delete(Route).where(col(Route.task_id).in_(some)))
        session.execute(sa.delete(Clustering).where(col(Clustering.task_id).in_(some)))
        session.execute(sa.delete(Task).where(col(Task.id).in_(some)))
    named = {task.id: _given(task) for task in others[:100]}
    policies = {task.id: task.policy for task in others if task.policy}
    said = {"merged": named, "tasks": len(others), "policies": policies, "retired": retired, "why": why}
    audit.record(session, by, "tasks merged", kept.id, said)


def part(session: Session, task: Task, identity: Identity) -> Task:
    """The row of a part of a task, with what its owner decided about the whole; a key for the whole is one for the part."""
    made = tasks.ensure(session, identity)
    made.status, made.policy = task.status, dict(task.policy)
    session.flush()
    _widen_keys(session, made.id, {task.id})
    return made


def divide(session: Session, task: Task, part: Task, text: str, *, by: str) -> None:
    """From now on the task's requests that have this text in a system message or in the first user message are `part`'s.

    Its captures follow in the background: `sort`.
    """
    session.add(TaskTemplate(task_id=part.id, scope=task.id, segments=[text], gaps=[ANY, ANY], changed_by=by))
    task.sorted_to, task.steered_at, part.steered_at = "", now(), now()
    audit.record(session, by, "task divided", task.id, {"part": part.id, "name": part.name, "containing": text})


def sort(session: Session, task_id: str, directory: Directory, after: str, limit: int = _AT_ONCE) -> tuple[str | None, int, int]:
    """Move the task's next captures, of those with ids above `after`, to the parts that they belong to.

    Returns (the last id that was looked at, or None at the end; how many were looked at; how many were moved).
    """
    found = session.exec(
        select(Capture).where(Capture.task_id == task_id, Capture.id > after).order_by(col(Capture.id)).limit(limit)
    ).all()
    parts: dict[str, list[str]] = {}
    for capture in found:
        if (texts := texts_of(capture)) is not None:
            system, asked = texts
            if (part := directory.within(task_id, system, _always(asked))) != task_id:
                parts.setdefault(part, []).append(capture.id)
    for part, ids in parts.items():
        captures.move(session, ids, part)
        _move_pairs(session, part, sa.select(col(Pair.id)).where(col(Pair.capture_id).in_(ids)))
    return (found[-1].id if found else None), len(found), sum(map(len, parts.values()))


def texts_of(capture: Capture) -> tuple[str, str] | None:
    """A capture's system text and its first user message; None where its request cannot be read."""
    request = request_of(capture)
    if request is None:
        return None
    return tasks.system_text(as_chat(capture.endpoint, request)), tasks.asked_text(request, capture.endpoint)


def request_of(capture: Capture) -> dict[str, Any] | None:
    """A capture's request; None where it cannot be read."""
    try:
        request = orjson.loads(capture.request)
    except (orjson.JSONDecodeError, BadFrame):
        return None
    return request if isinstance(request, dict) else None


def count(session: Session, task_id: str, limit: int) -> int:
    """How many captures the task has, counted no further than this."""
    some = sa.select(ROWS.c.id).join(KINDS, KINDS.c.id == ROWS.c.kind_id).where(KINDS.c.task_id == task_id).limit(limit).subquery()
    return int(session.execute(sa.select(func.count()).select_from(some)).scalar_one())


def _given(task: Task) -> str:
    """Its name, if somebody gave it: one made of a prompt is made again when the prompt comes, and may say too much."""
    return "" if task.shape and task.steered_at is None else task.name


def _busy(session: Session, ids: Collection[str]) -> list[str]:
    open_runs = _of(Run.task_id, ids).where(col(Run.status).in_([RunStatus.QUEUED, RunStatus.RUNNING]))
    candidates = _of(Adapter.task_id, ids).where(Adapter.status == AdapterStatus.CANDIDATE)
    searches = _of(Search.task_id, ids).where(Search.status == SearchStatus.RUNNING)
    curves = _of(LearningCurve.task_id, ids).where(col(LearningCurve.finished_at).is_(None))
    return [task_id for query in (open_runs, candidates, searches, curves) for task_id in session.exec(query)]


def _move_adapters(session: Session, kept: str, other: str, by: str) -> str | None:
    """Its versions come behind those that are there. Returns the adapter that answered for it, if that is retired."""
    route, standing = session.get(Route, other), session.get(Route, kept)
    live = route.adapter_id if route is not None else None
    retired = live if standing is not None and standing.adapter_id is not None else None
    if live is not None:
        assert route is not None
        routes.point(session, other, None, holdback=route.holdback, by=by, why=f"merged into {kept}")
        if retired is None:
            routes.point(session, kept, live, holdback=route.holdback, by=by, why=f"{other} was merged into it")
    if retired is not None:
        ended = {"stage": RolloutStage.RETIRED, "detail": f"{other} was merged into {kept}", "ended_at": now()}
        session.execute(sa.update(Rollout).where(col(Rollout.task_id) == other, col(Rollout.ended_at).is_(None)).values(ended))
    highest = session.exec(select(func.max(Adapter.version)).where(Adapter.task_id == kept)).one() or 0
    moved = {"task_id": kept, "version": col(Adapter.version) + highest}
    session.flush()
    session.execute(sa.update(Adapter).where(col(Adapter.task_id) == other).values(moved))
    return retired


def _move_pairs(session: Session, kept: str, of_these: sa.Select[Any]) -> None:
    """Pairs that nothing was learned from yet go, so that they are made anew among the task's own; the others come along.

    One of a prompt that the task has on the other side of the split is learned from no more.
    """
    learned = sa.or_(
        sa.exists().where(col(DatasetPair.pair_id) == col(Pair.id)), sa.exists().where(col(EvaluationItem.pair_id) == col(Pair.id))
    )
    no_sync = {"synchronize_session": False}
    session.execute(sa.delete(Pair).where(col(Pair.id).in_(of_these), ~learned), execution_options=no_sync)
    there = aliased(Pair)
    same_prompt = sa.and_(col(there.task_id) == kept, col(there.prompt_hash) == col(Pair.prompt_hash))
    across = sa.exists().where(same_prompt, col(there.split).is_not(None), col(there.split) != col(Pair.split))
    left_out: dict[str, Any] = {"status": PairStatus.EXCLUDED, "split": None}
    left_out["reason"] = "merged from another task, and its prompt is on the other side of the split"
    session.execute(sa.update(Pair).where(col(Pair.id).in_(of_these), across).values(left_out), execution_options=no_sync)
    session.execute(sa.update(Pair).where(col(Pair.id).in_(of_these)).values(task_id=kept), execution_options=no_sync)
    # distill looks for near-duplicates among those that came, across both sides of the split
    session.execute(sa.update(Clustering).where(col(Clustering.task_id) == kept).values(version=0), execution_options=no_sync)


def _move_names(session: Session, kept: str, ids: Collection[str], by: str) -> None:
    """What led to them leads to `kept`."""
    changed = {"task_id": kept, "changed_by": by, "changed_at": now()}
    session.execute(sa.delete(TaskAlias).where(col(TaskAlias.id).in_(ids)))
    session.execute(sa.update(TaskAlias).where(col(TaskAlias.task_id).in_(ids)).values(changed))
    templates = col(TaskTemplate.task_id).in_(ids)
    session.execute(sa.update(TaskTemplate).where(templates).values(changed))
    divided = {**changed, "scope": kept}
    divided.pop("task_id")
    session.execute(sa.update(TaskTemplate).where(col(TaskTemplate.scope).in_(ids)).values(divided))


def _widen_keys(session: Session, kept: str, ids: set[str]) -> None:
    """A key that may be used for one of them may be used for what it is now."""
    for key in session.exec(select(VirtualKey).where(col(VirtualKey.revoked_at).is_(None))):
        if key.tasks and ids & set(may := keys.task_ids(key)) and kept not in may:
            key.tasks = [*key.tasks, kept]


def _of(column: Any, ids: Collection[str]) -> Any:
    return select(column).where(col(column).in_(ids))


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]


def _always(text: str) -> Callable[[], str]:
    return lambda: text
