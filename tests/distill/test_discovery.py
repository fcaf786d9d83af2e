"""Tasks found by themselves, through the proxy's own writer: requests in the order they came, discovery between."""

import os
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from distill import discovery
from store import audit, moves, routes, tasks, templates
from store.columns import now
from store.session import Database
from store.states import RunStatus, TaskStatus
from store.tables import Adapter, AuditEvent, Capture, Dataset, Pair, Route, Run, Task, TaskAlias, TaskTemplate, VirtualKey
from tests import prompts
from tests.bench.bench_tasks import MIXED, mixed
from tests.traffic import send, task_ids

NAMES = [name.split()[0] for name in prompts.NAMES]


def support(name: str, day: int = 1, order: str = "Answer in one sentence") -> dict[str, Any]:
    system = f"You are the help desk of Contoso. It is 2026-05-{day:02}. You talk to {name}. {order}, and never mention prices."
    return {"model": "big", "messages": [{"role": "system", "content": system}, {"role": "user", "content": "?"}]}


def question(text: str) -> dict[str, Any]:
    return {"model": "big", "messages": [{"role": "user", "content": text}]}


def tasks_of(db: Database) -> list[Task]:
    with db.read() as session:
        return list(session.exec(select(Task).order_by(col(Task.id))))


def directory(db: Database) -> templates.Directory:
    with db.read() as session:
        return templates.read(session)


@pytest.mark.parametrize("every", [70, 10_000])
def test_generated_templates_are_found_while_traffic_flows(db: Database, every: int) -> None:
    told = list(prompts.requests([*prompts.SYSTEMS, *prompts.QUESTIONS], 40, seed=every))
    for start in range(0, len(told), every):
        send(db, (request for _, request in told[start : start + every]), first=start)
        discovery.turn(db)
    truth = [task for task, _ in told]
    assert prompts.adjusted_rand(truth, task_ids(db)) >= 0.95
    known = directory(db)
    fresh = list(prompts.requests([*prompts.SYSTEMS, *prompts.QUESTIONS], 20, seed=every + 1_000_000))
    named = [tasks.identify(request, directory=known).id for _, request in fresh if "passages" not in str(request)]
    assert prompts.adjusted_rand([task for task, request in fresh if "passages" not in str(request)], named) >= 0.9


def test_thirteen_interleaved_tasks_of_a_recording_come_apart(db: Database) -> None:
    folder = os.environ.get("STILLROOM_DATA")
    if not folder or not (Path(folder) / f"{MIXED}.jsonl.gz").exists():
        pytest.skip(f"the recordings are not here: STILLROOM_DATA is to name the folder of {MIXED}.jsonl.gz")
    told = mixed(Path(folder))[:3000]
    send(db, (request for _, request in told))
    discovery.turn(db)
    assert prompts.adjusted_rand([task for task, _ in told], task_ids(db)) >= 0.98


def test_the_next_day_belongs_to_the_task_of_the_first(db: Database) -> None:
    send(db, [support("Ann", day=1)])
    discovery.turn(db)
    assert tasks.identify(support("Ann", day=2), directory=directory(db)).id == task_ids(db)[0]
    assert tasks.identify(support("Bob", day=2), directory=directory(db)).id != task_ids(db)[0]


def test_a_look_at_nothing_new_does_nothing(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    assert discovery.turn(db) == len(NAMES) - 1
    before = directory(db)
    assert discovery.turn(db) == 0
    assert directory(db).version == before.version


def test_what_was_merged_shows_what_is_fixed_and_no_single_request(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    discovery.turn(db)
    [task] = tasks_of(db)
    assert task.system.startswith("You are the help desk of Contoso. It is")
    assert " … " in task.system
    with db.read() as session:
        kept = [task.name, task.system, *(alias.name for alias in session.exec(select(TaskAlias)))]
        kept += [repr(row.segments) for row in session.exec(select(TaskTemplate))]
        kept += [repr(event.detail) for event in session.exec(select(AuditEvent))]
    assert not [name for name in NAMES if any(name in each for each in kept)]


def test_a_new_task_that_is_like_a_known_one_is_a_task_of_its_own(db: Database) -> None:
    send(db, [support(name, day) for day in (1, 2, 3) for name in NAMES])
    discovery.turn(db)
    number = 1000
    for name in NAMES:  # a few at a time, as they would come
        send(db, [support(name, order="Answer with a list of at least three options")], first=number)
        discovery.turn(db)
        number += 1
    ids = task_ids(db)
    assert len(set(ids)) == 2
    assert len(set(ids[:-16])) == len(set(ids[-16:])) == 1


def test_what_a_person_named_takes_others_in_and_is_never_merged_away(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    mine = tasks.identify(support(NAMES[5])).id
    with db.begin() as session:
        task = session.get_one(Task, mine)
        task.name, task.steered_at = "mine", now()
    discovery.turn(db)
    assert [(task.id, task.name) for task in tasks_of(db)] == [(mine, "mine")]


def test_two_tasks_that_a_person_decided_about_stay_two(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    mine = [tasks.identify(support(name)).id for name in NAMES[:2]]
    with db.begin() as session:
        for task_id in mine:
            session.get_one(Task, task_id).steered_at = now()
    discovery.turn(db)
    assert {task.id for task in tasks_of(db)} == set(mine)
    named = [tasks.identify(support(name), directory=directory(db)).id for name in NAMES[:2]]
    assert named == mine
    discovery.turn(db)
    assert {task.id for task in tasks_of(db)} == set(mine)


def test_tasks_that_their_clients_named_are_left_alone(db: Database) -> None:
    send(db, [support(name) for name in NAMES], task="a name")
    discovery.turn(db)
    assert [task.name for task in tasks_of(db)] == ["a name"]
    assert directory(db).shelves == {}


def test_a_merged_ignored_task_stays_ignored(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    discovery.turn(db)
    [task] = tasks_of(db)
    with db.begin() as session:
        row = session.get_one(Task, task.id)
        row.status, row.steered_at = TaskStatus.IGNORED, now()
    send(db, [support(f"Dr. {name}", day=9) for name in NAMES], first=100)
    discovery.turn(db)
    [task] = tasks_of(db)
    assert task.status == TaskStatus.IGNORED


def trained(db: Database, task_id: str, *, live: bool) -> str:
    with db.begin() as session:
        dataset = Dataset(task_id=task_id, content_hash=task_id, path="artifacts/x", train_rows=1, holdout_rows=1)
        session.add(dataset)
        session.flush()
        run = Run(task_id=task_id, dataset_id=dataset.id, base_model="b", status=RunStatus.SUCCEEDED, recipe={}, recipe_hash="h")
        session.add(run)
        session.flush()
        adapter = Adapter(
            id=f"{task_id}@v1", task_id=task_id, version=1, run_id=run.id, base_model="b", path="p", sha256="s", status="accepted"
        )
        session.add(adapter)
        session.flush()
        if live:
            routes.point(session, task_id, adapter.id, by="test", why="test")
        return adapter.id


def test_the_task_with_a_student_is_the_one_that_stays(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    of_one = tasks.identify(support(NAMES[7])).id
    trained(db, of_one, live=True)
    discovery.turn(db)
    assert [task.id for task in tasks_of(db)] == [of_one]
    with db.read() as session:
        assert session.get_one(Route, of_one).adapter_id == f"{of_one}@v1"


def test_two_tasks_with_adapters_are_left_for_a_person_to_merge(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    both = [tasks.identify(support(name)).id for name in NAMES[:2]]
    adapters = [trained(db, task_id, live=True) for task_id in both]
    discovery.turn(db)
    assert {task.id for task in tasks_of(db)} == set(both)
    assert [tasks.identify(support(name), directory=directory(db)).id for name in NAMES[:2]] == both
    with db.read() as session:
        assert sorted(route.adapter_id or "" for route in session.exec(select(Route))) == sorted(adapters)


def test_a_task_that_is_being_trained_is_merged_when_that_is_over(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    busy = [tasks.identify(support(name)).id for name in NAMES[:2]]
    for task_id in busy:
        trained(db, task_id, live=False)
    with db.begin() as session:
        for run in session.exec(select(Run)):
            run.status = RunStatus.RUNNING
    discovery.turn(db)
    assert set(busy) == {task.id for task in tasks_of(db)}


def test_a_task_with_a_student_whose_template_was_erased_is_not_merged_away(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    discovery.turn(db)
    [task] = tasks_of(db)
    trained(db, task.id, live=True)
    with db.begin() as session:
        for row in [*session.exec(select(TaskTemplate)), *session.exec(select(TaskAlias))]:
            session.delete(row)
    others = [f"Dr. {name}" for name in NAMES]
    send(db, [support(name, day=9) for name in others], first=100)
    fresh = tasks.identify(support(others[0], day=9)).id
    trained(db, fresh, live=True)
    discovery.turn(db)
    assert {task.id, fresh} <= {each.id for each in tasks_of(db)}
    with db.read() as session:
        assert {route.adapter_id for route in session.exec(select(Route))} == {f"{task.id}@v1", f"{fresh}@v1"}


def test_what_was_written_while_a_task_was_merged_away_follows(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    discovery.turn(db)
    [kept] = tasks_of(db)
    # a drainer that had read the directory before: it makes the task again, and writes to it
    stale = [tasks.identify(support(name)).id for name in NAMES if tasks.identify(support(name)).id != kept.id]
    with db.begin() as session:
        identity = next(tasks.identify(support(name)) for name in NAMES if tasks.identify(support(name)).id == stale[0])
        tasks.ensure(session, identity)
        columns = {"endpoint": "/v1/chat/completions", "status": "complete", "served_by": "teacher", "request": b"{}"}
        session.add(Capture(id="cap_late", task_id=stale[0], **columns))
        session.add(Capture(id="cap_lost", task_id=stale[1], **columns))  # and one whose task's row had been there when it looked
    discovery.turn(db)
    assert [task.id for task in tasks_of(db)] == [kept.id]
    assert set(task_ids(db)) == {kept.id}


def test_questions_without_a_system_message_become_tasks_and_chatter_does_not(db: Database) -> None:
    asked = [question(f"Rate this review from 1 to 5 stars.\n\nReview: {name} is {name[::-1]}\n\nStars:") for name in NAMES]
    chatter = [question(text) for text in ("hello", "how are you?", "tell me a joke about cats", "what is the time in Rome")]
    send(db, [*asked, *chatter])
    pool = task_ids(db)[0]
    discovery.turn(db)
    ids = task_ids(db)
    assert len(set(ids[: len(asked)])) == 1
    assert set(ids[len(asked) :]) == {pool}
    assert ids[0] != pool
    known = directory(db)
    again = question("Rate this review from 1 to 5 stars.\n\nReview: Eve is here\n\nStars:")
    assert tasks.identify(again, directory=known).id == ids[0]
    assert tasks.identify({"model": "big", "prompt": again["messages"][0]["content"]}, None, "/v1/completions", known).id == ids[0]
    assert tasks.identify(question("hello again"), directory=known).id == pool


def test_tasks_of_before_there_were_shapes_are_found_too(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    send(db, [support("Zoe")], first=100, task="a name")
    with db.begin() as session:
        for task in session.exec(select(Task)):
            task.shape = None
    discovery.turn(db)
    assert sorted(task.shape or "" for task in tasks_of(db)) == ["", tasks.identify(support("Ann")).shape]


def test_a_part_takes_its_captures_and_their_pairs_are_made_anew(db: Database) -> None:
    send(db, [question(text) for text in ("a refund, please", "where is it?", "refund me", "hello")], task="tickets")
    with db.begin() as session:
        task = tasks.find(session, "tickets")
        assert task is not None
        for capture in session.exec(select(Capture)):
            session.add(Pair(task_id=task.id, capture_id=capture.id, status="ready", split="train"))
        part = tasks.ensure(session, tasks.identify({}, "refunds"))
        session.flush()
        moves.divide(session, task, part, "refund", by="ann")
    discovery.turn(db)
    assert [each == part.id for each in task_ids(db)] == [True, False, True, False]
    with db.read() as session:
        assert {pair.capture_id for pair in session.exec(select(Pair))} == {"cap_00000001", "cap_00000003"}
        kinds = {capture.task_id: capture.endpoint for capture in session.exec(select(Capture))}
    assert kinds == {task.id: "/v1/chat/completions", part.id: "/v1/chat/completions"}
    assert tasks.identify(question("refund!"), "tickets", directory=directory(db)).id == part.id


def test_keys_that_discovery_merged_are_forgotten_but_for_the_latest(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    discovery.turn(db, aliases=3)
    with db.read() as session:
        assert len(session.exec(select(TaskAlias)).all()) == 3
    assert {tasks.identify(support(name), directory=directory(db)).id for name in NAMES} == set(task_ids(db))


def test_a_key_that_was_limited_to_a_task_may_be_used_for_what_it_became(db: Database) -> None:
    send(db, [support(name) for name in NAMES])
    ids = [tasks.identify(support(name)).id for name in NAMES]
    with db.begin() as session:
        session.add(VirtualKey(sha256="00", last4="xxxx", label="one", tasks=[ids[3]]))
        audit.record(session, "test", "key made")
    discovery.turn(db)
    with db.read() as session:
        [key] = session.exec(select(VirtualKey))
        [task] = session.exec(select(Task))
    assert task.id in key.tasks
