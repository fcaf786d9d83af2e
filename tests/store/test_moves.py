"""Tasks merged and divided: what goes along, what stays, what leads where."""

from typing import Any

import pytest
from sqlmodel import Session, col, select

from store import captures, moves, routes, tasks, templates
from store.moves import Busy
from store.packing import Packer
from store.session import Database
from store.states import AdapterStatus, CaptureStatus, PairStatus, RolloutStage, RunStatus, Server, Split, TaskStatus
from store.tables import (
    Adapter,
    AuditEvent,
    Capture,
    CaptureKind,
    Dataset,
    DatasetPair,
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


def capture(number: int, task_id: str, **changes: Any) -> Capture:
    columns: dict[str, Any] = {"endpoint": "/v1/chat/completions", "status": CaptureStatus.COMPLETE, "served_by": Server.TEACHER}
    body = b'{"messages": [{"role": "user", "content": "number %d"}]}' % number
    return Capture(id=f"cap_{number:04}", task_id=task_id, request=body, **columns, **changes)


@pytest.fixture
def two(db: Database) -> Database:
    """Tasks kept and other, each with captures."""
    with db.begin() as session:
        for name in ("kept", "other"):
            session.add(Task(id=f"task_{name}", name=name))
        session.flush()
        told = [capture(n, f"task_{'other' if n % 2 else 'kept'}", stream=n % 4 > 1) for n in range(40)]
        captures.write(session, told, Packer())
    return db


def merge(db: Database, kept: str = "task_kept", other: str = "task_other") -> None:
    with db.begin() as session:
        moves.merge(session, session.get_one(Task, kept), [session.get_one(Task, other)], by="ann", why="the same")


def adapter(session: Session, task_id: str, version: int, *, live: bool = False, **changes: Any) -> Adapter:
    dataset = Dataset(task_id=task_id, content_hash=f"{task_id} {version}", path="x", train_rows=1, holdout_rows=1)
    session.add(dataset)
    session.flush()
    run = Run(task_id=task_id, dataset_id=dataset.id, base_model="b", status=RunStatus.SUCCEEDED, recipe={}, recipe_hash="h")
    session.add(run)
    session.flush()
    columns: dict[str, Any] = {"base_model": "b", "path": "p", "sha256": "s", "status": AdapterStatus.ACCEPTED, **changes}
    row = Adapter(id=f"{task_id}@v{version}", task_id=task_id, version=version, run_id=run.id, **columns)
    session.add(row)
    session.flush()
    if live:
        session.add(Rollout(task_id=task_id, adapter_id=row.id, stage=RolloutStage.LIVE))
        routes.point(session, task_id, row.id, holdback=0.1, by="test", why="test")
    return row


def test_captures_of_a_merged_task_are_the_others_and_as_they_were(two: Database) -> None:
    with two.read() as session:
        before = {each.id: each.parts() for each in session.exec(select(Capture))}
    merge(two)
    with two.read() as session:
        found = session.exec(select(Capture).where(Capture.task_id == "task_kept")).all()
        assert {each.id: each.parts() for each in found} == before
        assert session.get(Task, "task_other") is None
        [event] = session.exec(select(AuditEvent).where(AuditEvent.action == "tasks merged"))
    assert (event.actor, event.subject, event.detail["merged"]) == ("ann", "task_kept", {"task_other": "other"})


def test_what_is_written_after_a_merge_has_a_kind_of_its_own(two: Database) -> None:
    merge(two)
    with two.begin() as session:
        captures.write(session, [capture(n, "task_kept") for n in range(100, 104)], Packer())
        captures.write(session, [capture(n, "task_other") for n in range(200, 204)], Packer())  # by one who does not know yet
    with two.read() as session:
        assert {each.task_id for each in session.exec(select(Capture).where(col(Capture.id) >= "cap_0200"))} == {"task_other"}
        assert {each.task_id for each in session.exec(select(Capture).where(col(Capture.id) < "cap_0200"))} == {"task_kept"}


def test_a_merged_task_is_found_by_its_old_name_and_id_also_after_another_merge(two: Database) -> None:
    merge(two)
    with two.begin() as session:
        session.add(Task(id="task_third", name="third"))
    merge(two, "task_third", "task_kept")
    with two.read() as session:
        found = [tasks.find(session, each) for each in ("other", "task_other", "kept", "task_kept")]
        known = templates.read(session)
    assert [task.id if task else None for task in found] == ["task_third"] * 4
    assert (known.aliases, known.called) == (
        {"task_other": "task_third", "task_kept": "task_third"},
        {"other": "task_third", "kept": "task_third"},
    )


def test_templates_and_parts_of_a_merged_task_lead_to_the_other(two: Database) -> None:
    with two.begin() as session:
        session.add(TaskTemplate(task_id="task_other", scope="shape", segments=["x"], gaps=[0, 0], changed_by="discovery"))
        session.add(TaskTemplate(task_id="task_part", scope="task_other", segments=["y"], gaps=[0, 0], changed_by="ann"))
    merge(two)
    with two.read() as session:
        rows = {(row.task_id, row.scope) for row in session.exec(select(TaskTemplate))}
    assert rows == {("task_kept", "shape"), ("task_part", "task_kept")}


def test_an_adapter_that_answers_goes_on_answering_where_the_other_has_none(two: Database) -> None:
    with two.begin() as session:
        adapter(session, "task_other", 1, live=True)
    merge(two)
    with two.read() as session:
        table = routes.read(session)
        assert {task: target.adapter_id for task, target in table.targets.items()} == {"task_kept": "task_other@v1"}
        assert table.targets["task_kept"].holdback == 0.1
        assert session.get_one(Adapter, "task_other@v1").task_id == "task_kept"
        assert session.exec(select(Rollout)).one().stage == RolloutStage.LIVE
        assert session.get(Route, "task_other") is None


def test_where_both_have_an_adapter_that_answers_the_merged_ones_is_retired_and_kept(two: Database) -> None:
    with two.begin() as session:
        adapter(session, "task_kept", 1)
        adapter(session, "task_kept", 2, live=True)
        adapter(session, "task_other", 1, live=True)
    merge(two)
    with two.read() as session:
        assert {t: target.adapter_id for t, target in routes.read(session).targets.items()} == {"task_kept": "task_kept@v2"}
        versions = {row.id: row.version for row in session.exec(select(Adapter).where(Adapter.task_id == "task_kept"))}
        stages = {row.adapter_id: row.stage for row in session.exec(select(Rollout))}
        [event] = session.exec(select(AuditEvent).where(AuditEvent.action == "tasks merged"))
    assert versions == {"task_kept@v1": 1, "task_kept@v2": 2, "task_other@v1": 3}
    assert stages == {"task_kept@v2": RolloutStage.LIVE, "task_other@v1": RolloutStage.RETIRED}
    assert event.detail["retired"] == ["task_other@v1"]


@pytest.mark.parametrize("what", ["run", "candidate", "search", "curve"])
def test_a_task_that_is_being_trained_or_judged_is_not_merged_away(two: Database, what: str) -> None:
    with two.begin() as session:
        row = adapter(session, "task_other", 1)
        if what == "run":
            session.get_one(Run, row.run_id).status = RunStatus.RUNNING
        elif what == "candidate":
            row.status = AdapterStatus.CANDIDATE
        elif what == "search":
            of = session.get_one(Run, row.run_id).dataset_id
            session.add(Search(task_id="task_other", dataset_id=of, base_model="b", recipe={}, recipe_hash="h", space={}))
        else:
            session.add(LearningCurve(run_id=row.run_id, task_id="task_other"))
    with pytest.raises(Busy):
        merge(two)
    with two.read() as session:
        assert session.get(Task, "task_other") is not None
        assert len(session.exec(select(Capture).where(Capture.task_id == "task_other")).all()) == 20


def test_pairs_that_were_learned_from_come_along_and_the_others_are_made_anew(two: Database) -> None:
    with two.begin() as session:
        sides = {1: Split.TRAIN, 3: Split.HOLDOUT, 5: Split.TRAIN}
        for number, split in sides.items():
            pair = Pair(id=f"pair_{number}", task_id="task_other", capture_id=f"cap_{number:04}", status=PairStatus.READY)
            pair.split, pair.prompt_hash = split, f"hash {number}"
            session.add(pair)
        held = Pair(id="pair_0", task_id="task_kept", capture_id="cap_0000", status=PairStatus.READY, prompt_hash="hash 1")
        held.split = Split.HOLDOUT
        session.add(held)
        dataset = Dataset(task_id="task_other", content_hash="h", path="x", train_rows=1, holdout_rows=1)
        session.add(dataset)
        session.flush()
        session.add_all(DatasetPair(dataset_id=dataset.id, pair_id=f"pair_{number}") for number in (1, 3))
    merge(two)
    with two.read() as session:
        found = {pair.id: (pair.task_id, pair.status, pair.split) for pair in session.exec(select(Pair))}
    assert found == {
        "pair_0": ("task_kept", PairStatus.READY, Split.HOLDOUT),
        "pair_1": ("task_kept", PairStatus.EXCLUDED, None),  # its prompt is held out in the task that stays
        "pair_3": ("task_kept", PairStatus.READY, Split.HOLDOUT),
    }


def test_many_tasks_are_merged_at_once(db: Database) -> None:
    with db.begin() as session:
        session.add_all(Task(id=f"task_{n}", name=f"name {n}", shape="s") for n in range(1200))
        session.add_all(capture(n, f"task_{n}") for n in range(1200))
    with db.begin() as session:
        kept, *others = session.exec(select(Task).order_by(Task.id)).all()
        moves.merge(session, kept, others, by="discovery")
    with db.read() as session:
        assert moves.count(session, kept.id, 5000) == 1200
        assert moves.count(session, kept.id, 10) == 10
        assert len(session.exec(select(TaskAlias)).all()) == 1199
        assert {kind.digest for kind in session.exec(select(CaptureKind)) if kind.task_id != kept.id} == set()


def test_a_task_is_divided_batch_by_batch_wherever_that_stopped(two: Database) -> None:
    with two.begin() as session:
        task = session.get_one(Task, "task_kept")
        part = tasks.ensure(session, tasks.identify({}, "twenties"))
        session.flush()
        moves.divide(session, task, part, "number 2", by="ann")
    after: str | None = ""
    while after is not None:
        with two.begin() as session:
            after, looked_at, moved = moves.sort(session, "task_kept", templates.read(session), after, limit=3)
            assert moved <= looked_at <= 3
    with two.read() as session:
        found = session.exec(select(Capture).where(Capture.task_id == part.id).order_by(Capture.id)).all()
        assert [each.id for each in found] == [f"cap_{n:04}" for n in (2, 20, 22, 24, 26, 28)]
        assert {each.stream for each in found} == {True, False}
        assert moves.texts_of(found[0]) == ("", "number 2")


def test_a_part_is_as_its_owner_decided_about_the_whole(two: Database) -> None:
    with two.begin() as session:
        task = Task(id=f"task_{7:016}", name="whole", policy={"honour_store": True}, status=TaskStatus.PAUSED)
        session.add(task)
        session.add(VirtualKey(id="k1", sha256="01", last4="x", label="1", tasks=[task.id]))
        session.flush()
        part = moves.part(session, task, tasks.identify({}, "part"))
    with two.read() as session:
        row = session.get_one(Task, part.id)
        assert (row.policy, row.status) == ({"honour_store": True}, TaskStatus.PAUSED)
        assert session.get_one(VirtualKey, "k1").tasks == [task.id, part.id]


def test_a_key_for_a_merged_task_is_one_for_the_other(two: Database) -> None:
    with two.begin() as session:
        named = tasks.ensure(session, tasks.identify({}, "by name"))
        session.add(VirtualKey(id="k1", sha256="01", last4="x", label="1", tasks=["by name"]))
        session.add(VirtualKey(id="k2", sha256="02", last4="x", label="2", tasks=["task_kept"]))
        session.add(VirtualKey(id="k3", sha256="03", last4="x", label="3"))
    merge(two, "task_kept", named.id)
    with two.read() as session:
        assert [session.get_one(VirtualKey, f"k{n}").tasks for n in (1, 2, 3)] == [["by name", "task_kept"], ["task_kept"], []]
