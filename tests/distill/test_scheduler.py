"""One look at one task: who turns it, what a turn's end leaves, and that one odd task stops nobody."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from distill import datasets, pairs, recipe, runs, scheduler
from distill.settings import DistillSettings
from store import leases
from store.columns import now
from store.policy import Policy
from store.session import Database
from store.states import AdapterStatus, EngineStatus, RolloutStage, RunStatus
from store.tables import Adapter, Engine, Lease, Pair, Rollout, Run, Task
from tests.distill.conftest import exchange
from tests.traffic import send


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    return DistillSettings(home=tmp_path, lease_seconds=2)


@pytest.fixture
def task(db: Database, put: Callable[..., str]) -> str:
    """A task whose turn ends at once: nothing to learn from, as every answer is the same."""
    task_id = put(*(exchange(str(n), "same") for n in range(300)))
    with db.begin() as session:
        while pairs.extract(session, task_id, Policy()):
            pass
        session.add(Engine(id="e", status=EngineStatus.READY, base_model="tiny", base_path="/none"))
    return task_id


def turn(db: Database, task: str, settings: DistillSettings) -> Task:
    scheduler.turn_if_due(db, task, settings, threading.Event())
    return row(db, task)


def row(db: Database, task: str) -> Task:
    with db.read() as session:
        return session.get_one(Task, task)


def ask(db: Database, task: str, hours: float = 0) -> None:
    with db.begin() as session:
        session.get_one(Task, task).train_asked_at = now() + timedelta(hours=hours)


def test_a_turn_that_cannot_train_has_its_end_noted_and_is_not_turned_again(
    db: Database, task: str, settings: DistillSettings, caplog: pytest.LogCaptureFixture
) -> None:
    first = turn(db, task, settings).turned_at
    assert first is not None
    assert "'same': there is nothing to learn" in caplog.text
    assert turn(db, task, settings).turned_at == first


def test_what_a_person_asked_for_is_answered_by_a_turn_and_no_later_wish_is_lost(
    db: Database, task: str, settings: DistillSettings
) -> None:
    ask(db, task)
    assert turn(db, task, settings).train_asked_at is None
    ask(db, task, hours=1)  # while the turn is under way
    assert turn(db, task, settings).train_asked_at is not None


def test_a_wish_that_came_after_the_freeze_survives_the_end_of_that_turn(
    db: Database, put: Callable[..., str], task: str, settings: DistillSettings
) -> None:
    put(*(exchange(str(n), str(n % 7)) for n in range(1000, 1060)))
    with db.begin() as session:
        pairs.extract(session, task, Policy())
    dataset = datasets.freeze(db, task, Policy(), settings)
    with db.begin() as session:  # a turn as far as serving's refusal
        run = runs.open_run(session, dataset, "tiny", recipe.load())
        run.status = RunStatus.SUCCEEDED
        session.flush()
        session.add(Adapter(id="a@v1", task_id=task, version=1, run_id=run.id, base_model="tiny", path="x", sha256="0"))
        session.flush()
        session.add(Rollout(task_id=task, adapter_id="a@v1", stage=RolloutStage.REFUSED, detail="it is torn"))
    ask(db, task)
    after = turn(db, task, settings)
    assert after.turned_at is not None
    assert after.train_asked_at is not None
    with db.read() as session:
        assert session.exec(select(Adapter.status)).one() == AdapterStatus.REFUSED


def test_a_task_that_another_process_turns_is_left_alone_until_its_lease_lapses(
    db: Database, task: str, settings: DistillSettings
) -> None:
    with db.begin() as session:
        assert leases.acquire(session, f"turn {task}", "another", 3600) is not None
    assert turn(db, task, settings).turned_at is None
    with db.begin() as session:
        session.get_one(Lease, f"turn {task}").expires_at = now()  # it died
    assert turn(db, task, settings).turned_at is not None


def test_nothing_is_turned_once_the_process_was_told_to_stop(db: Database, task: str, settings: DistillSettings) -> None:
    stop = threading.Event()
    stop.set()
    scheduler.turn_if_due(db, task, settings, stop)
    assert row(db, task).turned_at is None


def test_a_task_that_cannot_be_read_is_told_and_the_others_go_on(
    db: Database, put: Callable[..., str], task: str, settings: DistillSettings, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [{"role": "system", "content": "Another."}, {"role": "user", "content": "1"}]
    other = put(exchange("1", "one", request={"messages": messages}))
    assert other != task
    with db.begin() as session:
        session.get_one(Task, task).policy = {"growth": "much"}
    for each in (task, other):
        scheduler.gather(db, each, settings)
    assert "cannot be read; set it again" in caplog.text
    with db.read() as session:
        assert session.exec(select(Pair.task_id).where(Pair.task_id == other)).all() == [other]
        assert session.exec(select(Run)).all() == []


def test_tasks_are_found_before_they_are_looked_at_and_by_one_process(db: Database, settings: DistillSettings) -> None:
    def asked(day: int) -> dict[str, Any]:
        return {"model": "big", "messages": [{"role": "system", "content": f"It is 2026-05-{day:02}. Sort the ticket."}]}

    send(db, [asked(day) for day in range(1, 9)])
    with leases.hold(db, "discovery", "another", 30):
        scheduler.discover(db, settings)
    with db.read() as session:
        assert len(session.exec(select(Task)).all()) == 8
    scheduler.discover(db, settings)
    with db.read() as session:
        assert len(session.exec(select(Task)).all()) == 1
