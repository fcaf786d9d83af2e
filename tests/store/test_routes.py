"""Who answers: pointed, read, written down."""

from sqlmodel import col, select

from store import keys, routes
from store.routes import Target
from store.session import Database
from store.states import EngineStatus
from store.tables import AuditEvent, Engine, Route, Task


def engine(name: str, status: EngineStatus, loaded: list[str]) -> Engine:
    return Engine(id=name, url=f"http://127.0.0.1/{name}", status=status, loaded=loaded)


def test_a_table_without_routes_belongs_to_the_teacher(db: Database) -> None:
    with db.read() as session:
        assert routes.read(session) == routes.Table({}, (), frozenset(), keys={})


def test_a_task_is_pointed_at_an_adapter_and_back(db: Database) -> None:
    with db.begin() as session:
        routes.point(session, "task_1", "task_1@v1", holdback=0.1, by="me", why="it passed")
    with db.read() as session:
        assert routes.read(session).targets == {"task_1": Target("task_1@v1", 0.1)}
    with db.begin() as session:
        routes.point(session, "task_1", None, by="me", why="it erred")
    with db.read() as session:
        assert routes.read(session).targets == {}


def test_every_change_counts_the_version_up_and_is_audited(db: Database) -> None:
    for adapter in ("task_1@v1", "task_1@v2"):
        with db.begin() as session:
            routes.point(session, "task_1", adapter, by="me", why="newer")
    with db.read() as session:
        route = session.get_one(Route, "task_1")
        last = session.exec(select(AuditEvent).order_by(col(AuditEvent.id).desc())).first()
    assert (route.version, route.adapter_id, route.updated_by) == (2, "task_1@v2", "me")
    assert last is not None
    assert (last.actor, last.action, last.subject) == ("me", "route", "task_1")
    assert last.detail == {"from": "task_1@v1", "to": "task_1@v2", "version": 2, "why": "newer"}


def test_only_adapters_that_every_ready_engine_has_are_loaded(db: Database) -> None:
    with db.begin() as session:
        session.add(engine("a", EngineStatus.READY, ["v1", "v2"]))
        session.add(engine("b", EngineStatus.READY, ["v2", "v3"]))
        session.add(engine("c", EngineStatus.DOWN, []))
    with db.read() as session:
        table = routes.read(session)
    assert table.loaded == {"v2"}
    assert sorted(table.engines) == ["http://127.0.0.1/a", "http://127.0.0.1/b"]


def test_the_table_names_the_tasks_that_honour_store(db: Database) -> None:
    with db.begin() as session:
        for name, policy in (("yes", {"honour_store": True}), ("no", {"honour_store": False}), ("unset", {})):
            session.add(Task(id=f"task_{name}", name=name, policy=policy))
    with db.read() as session:
        assert routes.read(session).unstored == {"task_yes"}


def test_a_table_has_the_keys_in_use(db: Database) -> None:
    with db.begin() as session:
        key, _ = keys.make(session, "ci", by="me")
        revoked, _ = keys.make(session, "old", by="me")
        keys.revoke(session, revoked, by="me")
    with db.read() as session:
        table = routes.read(session)
    assert [view.id for view in (table.keys or {}).values()] == [key.id]
