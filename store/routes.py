"""Who answers which task, and who may ask: read by the proxy. Routes are pointed by serving and admin, here only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from store import audit, keys, prompts
from store.columns import now
from store.keys import KeyView
from store.prompts import BadTransform, Transform
from store.states import EngineStatus
from store.tables import Adapter, Engine, Route, Task


@dataclass(frozen=True)
class Target:
    """A task's route as the proxy needs it."""

    adapter_id: str
    holdback: float
    transform: Transform | None = None  #: what the adapter is shown instead of the whole prompt


@dataclass(frozen=True)
class Table:
    """Everything the proxy must know to choose, read in one go."""

    targets: dict[str, Target]  #: by task id; a task not in it belongs to the teacher
    engines: tuple[str, ...]  #: base URLs of vLLM servers that are ready
    loaded: frozenset[str]  #: adapters that every ready engine has
    unstored: frozenset[str] = frozenset()  #: tasks of which a request that says `store: false` is not captured
    context: int | None = None  #: tokens of a prompt and its answer together, of the ready engine that has the fewest
    keys: Mapping[bytes, KeyView] | None = None  #: virtual keys by SHA-256; None: not read yet


def read(session: Session) -> Table:
    """The current table. A few small queries."""
    routed = select(Route, Adapter.transform).outerjoin(Adapter, col(Adapter.id) == col(Route.adapter_id))
    routes = session.exec(routed.where(col(Route.adapter_id).is_not(None))).all()
    engines = session.exec(select(Engine).where(col(Engine.status) == EngineStatus.READY)).all()
    unstored = session.exec(select(Task.id).where(col(Task.policy)["honour_store"].as_boolean())).all()
    have = [frozenset(engine.loaded) for engine in engines]
    return Table(
        targets={route.task_id: target for route, transform in routes if (target := _target(route, transform)) is not None},
        engines=tuple(engine.url for engine in engines if engine.url),
        loaded=frozenset.intersection(*have) if have else frozenset(),
        unstored=frozenset(unstored),
        context=min((engine.context for engine in engines if engine.context is not None), default=None),
        keys=keys.read(session),
    )


def point(session: Session, task_id: str, adapter_id: str | None, *, holdback: float = 0.02, by: str, why: str) -> Route:
    """Point a task at an adapter, or (None) back at the teacher. The proxies follow within a second."""
    route = session.get(Route, task_id, with_for_update=True)
    before = route.adapter_id if route else None
    if route is None:
        route = Route(task_id=task_id, version=0)
    route.adapter_id, route.holdback = adapter_id, holdback
    route.version, route.updated_at, route.updated_by = route.version + 1, now(), by
    session.add(route)
    audit.record(session, by, "route", task_id, {"from": before, "to": adapter_id, "version": route.version, "why": why})
    return route


def _target(route: Route, transform: Mapping[Any, Any] | None) -> Target | None:
    """None, so that the teacher answers, where nobody here knows what the adapter must be shown."""
    assert route.adapter_id is not None
    try:
        return Target(route.adapter_id, route.holdback, None if transform is None else prompts.read(transform))
    except BadTransform:
        return None
