"""Adapters, and what people may decide: train, promote, take back."""

import pytest

from admin import adapters
from admin.problems import Conflict, Invalid, NotFound
from store import routes
from store.session import Database
from store.states import AdapterStatus, Outcome, RolloutStage, TaskStatus
from store.tables import Route, Task
from tests.admin import rows


@pytest.fixture
def task(db: Database) -> Task:
    with db.begin() as session:
        return rows.numbers(session, 0, 40)


def test_an_adapter_shows_its_verdict_its_stage_and_whether_it_is_live(db: Database, task: Task) -> None:
    with db.begin() as session:
        first = rows.trained(session, task, version=1)
        rows.trained(session, task, version=2, outcome=Outcome.FAILED)
        rows.live(session, first)
    with db.read() as session:
        new, old = adapters.listing(session).data
        assert [line.id for line in adapters.listing(session, status=AdapterStatus.ACCEPTED).data] == [first.id]
    assert (old.version, old.outcome, old.stage, old.live) == (1, Outcome.PASSED, RolloutStage.STAGED, True)
    assert (new.version, new.outcome, new.live) == (2, Outcome.FAILED, False)


def test_a_loaded_adapter_is_promoted_now(db: Database, task: Task) -> None:
    with db.begin() as session:
        adapter = rows.trained(session, task)
        rows.engine(session, adapter.id)
    with db.begin() as session:
        promotion = adapters.promote(session, adapter.id, by="me", why="it is good", holdback=0.5)
    with db.read() as session:
        assert routes.read(session).targets == {task.id: routes.Target(adapter.id, 0.5)}
    assert promotion.live
    assert promotion.holdback == 0.5


def test_an_adapter_that_is_not_loaded_is_promoted_once_it_is(db: Database, task: Task) -> None:
    from serving import rollout

    with db.begin() as session:
        adapter = rows.trained(session, task, outcome=Outcome.FAILED)
    with db.begin() as session:
        promotion = adapters.promote(session, adapter.id, by="me", why="it is good enough")
        assert routes.read(session).targets == {}
    with db.begin() as session:
        rows.engine(session, adapter.id)
        rollout.advance(session)
    with db.read() as session:
        assert routes.read(session).targets[task.id].adapter_id == adapter.id
    assert not promotion.live


def test_a_tasks_latest_accepted_adapter_is_promoted(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.trained(session, task, version=1)
        accepted = rows.trained(session, task, version=2)
        rows.trained(session, task, version=3, outcome=Outcome.FAILED)
        promotion = adapters.promote(session, task.name, by="me", why="it is time")
    assert promotion.adapter_id == accepted.id


def test_a_task_without_an_accepted_adapter_names_those_it_has(db: Database, task: Task) -> None:
    with db.begin() as session:
        refused = rows.trained(session, task, outcome=Outcome.FAILED)
        with pytest.raises(Conflict, match=f"Name one to promote it all the same: {refused.id}"):
            adapters.promote(session, task.name, by="me", why="")


def test_what_cannot_be_promoted_is_refused_with_the_reason(db: Database, task: Task) -> None:
    with db.begin() as session:
        adapter = rows.trained(session, task)
        with pytest.raises(NotFound, match="stillroom adapters"):
            adapters.promote(session, "nothing", by="me", why="")
        with pytest.raises(Invalid, match="0 to 1, not 2"):
            adapters.promote(session, adapter.id, by="me", why="", holdback=2)
        session.get_one(Task, task.id).status = TaskStatus.IGNORED
        session.flush()
        with pytest.raises(Conflict, match="is ignored"):
            adapters.promote(session, adapter.id, by="me", why="")


def test_a_task_is_taken_back_with_every_worker_dead(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.live(session, rows.trained(session, task))
    with db.begin() as session:
        adapters.rollback(session, task.name, by="me", why="it erred")
    with db.read() as session:
        assert routes.read(session).targets == {}
        assert session.get_one(Route, task.id).updated_by == "me"


def test_a_training_is_asked_for(db: Database, task: Task) -> None:
    with db.begin() as session:
        adapters.train(session, task.name, by="me")
    with db.read() as session:
        assert session.get_one(Task, task.id).train_asked_at is not None


def test_a_task_with_too_few_pairs_says_what_it_needs(db: Database) -> None:
    with db.begin() as session:
        small = rows.numbers(session, 0, 3)
        with pytest.raises(Conflict, match=r"there are 2 pairs to train on .*stillroom import"):
            adapters.train(session, small.name, by="me")


def test_an_ignored_task_is_not_promised_a_training(db: Database, task: Task) -> None:
    with db.begin() as session:
        session.get_one(Task, task.id).status = TaskStatus.IGNORED
        session.flush()
        with pytest.raises(Conflict, match="is ignored: `stillroom task resume"):
            adapters.train(session, task.name, by="me")
        assert session.get_one(Task, task.id).train_asked_at is None


def test_an_unknown_task_is_told(db: Database, task: Task) -> None:
    with db.begin() as session:
        with pytest.raises(NotFound, match="There is no task 'nothing'"):
            adapters.train(session, "nothing", by="me")
        with pytest.raises(NotFound, match="There is no task 'nothing'"):
            adapters.rollback(session, "nothing", by="me", why="")
