"""An adapter's way into traffic and out of it. Rows only: no vLLM is asked anything here, and nothing heavy is imported.

    (candidate) -> STAGED -> LIVE -> RETIRED | ROLLED_BACK
              \\-> REFUSED      \\-> RETIRED (its verdict was no, or it never got one)

A promotion that a person asked for while no vLLM had the adapter is a staged rollout whose `detail` begins with ASKED, its
particulars in the audit log: `advance` promotes it once it is loaded.
"""

from dataclasses import dataclass
from enum import Enum

from pydantic import ValidationError
from sqlmodel import Session, col, select

from store import audit, policy, routes
from store.columns import now
from store.states import AdapterStatus, Outcome, RolloutStage, TaskStatus
from store.tables import Adapter, AuditEvent, Rollout, Route, Task, Verdict

ACTOR = "serving"
ASKED = "promotion asked by "


class NotReady(Exception):
    """The adapter cannot be promoted now; the message says what to do."""


class Verb(Enum):
    """What `advance` may do with an adapter."""

    STAGE = "stage"
    PROMOTE = "promote"
    RETIRE = "retire"
    WAIT = "wait"  #: for a person


@dataclass(frozen=True)
class Step:
    """One thing that is due, and why."""

    verb: Verb
    adapter_id: str
    why: str


def promote(session: Session, adapter_id: str, *, by: str, why: str, holdback: float | None = None) -> Route:
    """Point the adapter's task at it; what was live before is retired. Done already: nothing happens.

    `holdback` is the share of requests that the teacher keeps, by default the task's policy's. Raises NotReady unless every
    ready vLLM has the adapter loaded.
    """
    adapter, task, rollout = _known(session, adapter_id)
    share = _share(task, holdback)
    route = session.get(Route, task.id)
    if rollout is not None and rollout.stage == RolloutStage.LIVE and route is not None and route.adapter_id == adapter_id:
        if route.holdback == share:
            return route
        return routes.point(session, task.id, adapter_id, holdback=share, by=by, why=why)
    table = routes.read(session)
    if adapter_id not in table.loaded:
        where = "no vLLM is ready" if not table.engines else f"vLLM has not loaded {adapter_id}"
        raise NotReady(f"{where}: is `stillroom serving` running? `stillroom status` tells more")
    _end(session, task.id, RolloutStage.RETIRED, f"replaced by {adapter_id}")
    rollout = _stage(session, adapter, f"promoted by {by}: {why}")
    rollout.stage, rollout.live_at = RolloutStage.LIVE, now()
    audit.record(session, by, "promote", adapter_id, {"task": task.id, "holdback": share, "why": why})
    return routes.point(session, task.id, adapter_id, holdback=share, by=by, why=why)


def request_promotion(session: Session, adapter_id: str, *, by: str, why: str, holdback: float | None = None) -> Route | None:
    """Promote now if that can be done; else have the adapter loaded and promoted then, and return None. Raises NotReady.

    One that was refused is looked at again: what was in its way may be mended.
    """
    adapter, task, rollout = _known(session, adapter_id)
    is_live = rollout is not None and rollout.stage == RolloutStage.LIVE
    if is_live or adapter_id in routes.read(session).loaded:
        return promote(session, adapter_id, by=by, why=why, holdback=holdback)
    _stage(session, adapter, f"{ASKED}{by}: {why}")
    audit.record(session, by, "promotion asked", adapter_id, {"holdback": _share(task, holdback), "why": why})
    return None


def rollback(session: Session, task_id: str, *, by: str, why: str) -> Route:
    """Give the task back to the teacher, at once: a row, which needs no vLLM and no worker."""
    before = session.get(Route, task_id)
    ended = _end(session, task_id, RolloutStage.ROLLED_BACK, f"rolled back by {by}: {why}", asked_too=True)
    audit.record(session, by, "rollback", task_id, {"adapters": ended, "why": why})
    holdback = before.holdback if before is not None else policy.Policy().holdback
    return routes.point(session, task_id, None, holdback=holdback, by=by, why=why)


def refuse(session: Session, adapter_id: str, reason: str) -> None:
    """Note that a new or staged adapter must not be loaded, or that vLLM will not. A live one stays: its file may come back."""
    rollout = _of(session, adapter_id)
    if rollout is None:
        adapter = session.get_one(Adapter, adapter_id)
        rollout = Rollout(task_id=adapter.task_id, adapter_id=adapter_id)
    elif rollout.stage != RolloutStage.STAGED:
        return
    rollout.stage, rollout.detail, rollout.ended_at = RolloutStage.REFUSED, reason, now()
    session.add(rollout)
    audit.record(session, ACTOR, "refuse", adapter_id, {"why": reason})


def due(session: Session) -> list[Step]:
    """What the rows call for; nothing is changed."""
    loaded = routes.read(session).loaded
    rolled_out = select(Rollout.adapter_id)
    fresh = select(Adapter.id).where(col(Adapter.status) == AdapterStatus.CANDIDATE, col(Adapter.id).not_in(rolled_out))
    steps = [Step(Verb.STAGE, each, "checked and loaded") for each in session.exec(fresh) if each in loaded]
    staged = (
        select(Rollout, Adapter, Task, Verdict)
        .join(Adapter, col(Adapter.id) == col(Rollout.adapter_id))
        .join(Task, col(Task.id) == col(Rollout.task_id))
        .outerjoin(Verdict, col(Verdict.adapter_id) == col(Rollout.adapter_id))
        .where(col(Rollout.stage) == RolloutStage.STAGED)
        .order_by(col(Adapter.version))
    )
    for rollout, adapter, task, verdict in session.exec(staged).all():
        step = _judge(session, rollout, adapter, task, verdict, adapter.id in loaded)
        if step is not None:
            steps.append(step)
    return steps


def advance(session: Session) -> list[Step]:
    """Do what is due, each thing once: stage what is loaded, promote what passed, retire what did not. Returns what was done."""
    steps = due(session)
    for step in steps:
        adapter = session.get_one(Adapter, step.adapter_id)
        rollout = _of(session, step.adapter_id)
        if step.verb == Verb.STAGE:
            _stage(session, adapter, "")
            audit.record(session, ACTOR, "stage", adapter.id, {"sha256": adapter.sha256})
        elif step.verb == Verb.PROMOTE:
            asked = _asked(session, adapter.id) if rollout is not None and rollout.detail.startswith(ASKED) else None
            by, holdback = (asked.actor, asked.detail.get("holdback")) if asked is not None else (ACTOR, None)
            promote(session, adapter.id, by=by, why=step.why, holdback=holdback)
        elif rollout is not None:
            rollout.detail = step.why
            if step.verb == Verb.RETIRE:
                rollout.stage, rollout.ended_at = RolloutStage.RETIRED, now()
            audit.record(session, ACTOR, step.verb.value, adapter.id, {"why": step.why})
        session.flush()
    return steps


def _judge(
    session: Session, rollout: Rollout, adapter: Adapter, task: Task, verdict: Verdict | None, is_loaded: bool
) -> Step | None:
    """What is due with a staged rollout."""
    if rollout.detail.startswith(ASKED):
        if task.status == TaskStatus.IGNORED:
            return Step(Verb.RETIRE, adapter.id, "the task is ignored")
        return Step(Verb.PROMOTE, adapter.id, rollout.detail.partition(": ")[2]) if is_loaded else None
    if verdict is None:
        given_up = adapter.status == AdapterStatus.REFUSED
        return Step(Verb.RETIRE, adapter.id, "its evaluation could not be finished") if given_up else None
    if verdict.outcome != Outcome.PASSED:
        return Step(Verb.RETIRE, adapter.id, f"its verdict: {verdict.outcome}. {verdict.reason}")
    route = session.get(Route, task.id)
    live = session.get(Adapter, route.adapter_id) if route is not None and route.adapter_id else None
    if live is not None and live.version > adapter.version:
        return Step(Verb.RETIRE, adapter.id, f"{live.id} is live and newer")
    obstacle = _obstacle(task, adapter)
    if obstacle is not None:
        why = f"Passed the gate; waits for a person to promote it, because {obstacle}."
        return Step(Verb.WAIT, adapter.id, why) if rollout.detail != why else None
    return Step(Verb.PROMOTE, adapter.id, verdict.reason) if is_loaded else None


def _obstacle(task: Task, adapter: Adapter) -> str | None:
    """Why an adapter of this task that passed is not promoted without a person; None if it is."""
    if adapter.stale_since is not None:
        return "something that it learned from is erased since"
    if task.status != TaskStatus.ACTIVE:
        return f"the task is {task.status}"
    try:
        return None if policy.of(task).auto_promote else "the task's policy says so"
    except ValidationError:
        return "the task's policy cannot be read"


def _known(session: Session, adapter_id: str) -> tuple[Adapter, Task, Rollout | None]:
    """The adapter, its task, its rollout. Raises NotReady if it may not be promoted at all."""
    adapter = session.get(Adapter, adapter_id)
    if adapter is None:
        raise NotReady(f"there is no adapter {adapter_id}: `stillroom adapters` lists them")
    task, rollout = session.get_one(Task, adapter.task_id), _of(session, adapter_id)
    if task.status == TaskStatus.IGNORED:
        raise NotReady(f"the task {task.name} is ignored: make it active first")
    return adapter, task, rollout


def _of(session: Session, adapter_id: str) -> Rollout | None:
    return session.exec(select(Rollout).where(Rollout.adapter_id == adapter_id).with_for_update()).first()


def _stage(session: Session, adapter: Adapter, detail: str) -> Rollout:
    """The adapter's rollout, staged: new, or one more time."""
    rollout = _of(session, adapter.id) or Rollout(task_id=adapter.task_id, adapter_id=adapter.id)
    rollout.stage, rollout.detail, rollout.live_at, rollout.ended_at = RolloutStage.STAGED, detail, None, None
    session.add(rollout)
    return rollout


def _end(session: Session, task_id: str, stage: RolloutStage, detail: str, *, asked_too: bool = False) -> list[str]:
    """End the task's live rollouts, and perhaps the promotions a person asked for. Returns the adapters."""
    query = select(Rollout).where(Rollout.task_id == task_id, col(Rollout.ended_at).is_(None)).with_for_update()
    ended = []
    for rollout in session.exec(query):
        asked = rollout.stage == RolloutStage.STAGED and rollout.detail.startswith(ASKED)
        if rollout.stage == RolloutStage.LIVE or (asked_too and asked):
            rollout.stage, rollout.detail, rollout.ended_at = stage, detail, now()
            ended.append(rollout.adapter_id)
    return ended


def _share(task: Task, holdback: float | None) -> float:
    """The share that the teacher keeps, by default the policy's."""
    try:
        return policy.of(task).holdback if holdback is None else holdback
    except ValidationError as error:
        raise NotReady(f"the policy of {task.name} cannot be read; set it again: {error}") from error


def _asked(session: Session, adapter_id: str) -> AuditEvent | None:
    query = select(AuditEvent).where(AuditEvent.subject == adapter_id, AuditEvent.action == "promotion asked")
    return session.exec(query.order_by(col(AuditEvent.id).desc())).first()
