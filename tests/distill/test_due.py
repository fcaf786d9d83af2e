"""When a task's wheel turns, decided from rows alone."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlmodel import select

from distill import datasets, due, pairs, recipe, runs
from distill.settings import DistillSettings
from store import policy
from store.columns import now
from store.session import Database
from store.states import AdapterStatus, ReviewKind, RunStatus, TaskStatus
from store.tables import Adapter, Pair, Review, Run, Task
from tests.distill.conftest import exchange


@pytest.fixture
def fill(db: Database, put: Callable[..., str]) -> Callable[[int, int], str]:
    """Store exchanges first..last of one task and make their pairs."""

    def fill(first: int, last: int) -> str:
        task = put(*(exchange(str(n), "even" if n % 2 == 0 else "odd") for n in range(first, last)))
        with db.begin() as session:
            while pairs.extract(session, task, policy.Policy()):
                pass
        return task

    return fill


def look(db: Database, task: str, *, hours: float = 0) -> due.Due:
    with db.read() as session:
        return due.decide(session, session.get_one(Task, task), now() + timedelta(hours=hours))


def change(db: Database, task: str, **values: object) -> None:
    with db.begin() as session:
        for key, value in values.items():
            setattr(session.get_one(Task, task), key, value)


def trained(db: Database, task: str, settings: DistillSettings, status: AdapterStatus = AdapterStatus.REFUSED) -> None:
    """A turn that came to its end."""
    dataset = datasets.freeze(db, task, policy.Policy(), settings)
    with db.begin() as session:
        run = runs.open_run(session, dataset, "tiny", recipe.load())
        run.status = RunStatus.SUCCEEDED
        session.flush()
        session.add(
            Adapter(id=f"{task}@v1", task_id=task, version=1, run_id=run.id, base_model="tiny", path="x", sha256="0", status=status)
        )


@pytest.fixture
def settings(db: Database) -> DistillSettings:
    return DistillSettings(home=db.engine.url.database.rpartition("/")[0])  # type: ignore[union-attr]


def test_the_first_turn_waits_for_300_pairs(db: Database, fill: Callable[[int, int], str]) -> None:
    task = fill(0, 299)
    assert look(db, task) == due.Due(False, "1 more pairs until the first training")
    fill(299, 300)
    assert look(db, task).now


def test_the_next_turn_waits_for_a_quarter_more_and_for_a_day(
    db: Database, fill: Callable[[int, int], str], settings: DistillSettings
) -> None:
    task = fill(0, 300)
    trained(db, task, settings)
    waiting = look(db, task, hours=25)
    assert not waiting.now
    assert "more training pairs" in waiting.why
    fill(300, 450)
    assert "not before" in look(db, task).why
    assert look(db, task, hours=25).now


def test_a_timetable_replaces_growth(db: Database, fill: Callable[[int, int], str], settings: DistillSettings) -> None:
    task = fill(0, 300)
    trained(db, task, settings)
    change(db, task, policy={"cron": "0 3 * * *"})
    assert not look(db, task, hours=0).now
    assert look(db, task, hours=24.1).now


def test_a_turn_begun_goes_on_even_in_a_paused_task(
    db: Database, fill: Callable[[int, int], str], settings: DistillSettings
) -> None:
    task = fill(0, 300)
    trained(db, task, settings, AdapterStatus.CANDIDATE)
    change(db, task, status=TaskStatus.PAUSED)
    assert "not at its end" in look(db, task).why
    with db.begin() as session:
        session.exec(select(Adapter)).one().status = AdapterStatus.REFUSED
    assert look(db, task, hours=100).why == "the task is paused"


def test_a_failed_run_is_not_tried_again_by_itself(
    db: Database, fill: Callable[[int, int], str], settings: DistillSettings
) -> None:
    task = fill(0, 300)
    dataset = datasets.freeze(db, task, policy.Policy(), settings)
    with db.begin() as session:
        runs.open_run(session, dataset, "tiny", recipe.load()).status = RunStatus.FAILED
    assert not look(db, task, hours=100).now


def test_a_person_may_ask_for_a_turn_and_is_told_at_once_if_it_cannot_be(db: Database, fill: Callable[[int, int], str]) -> None:
    task = fill(0, 3)
    with db.begin() as session, pytest.raises(datasets.NotTrainable, match="there are"):
        due.ask(session, task, "ada")
    fill(3, 60)
    with db.begin() as session:
        due.ask(session, task, "ada")
    assert look(db, task) == due.Due(True, "a person asked for it")


def test_runs_of_the_same_dataset_and_recipe_are_one_run(
    db: Database, fill: Callable[[int, int], str], settings: DistillSettings
) -> None:
    task = fill(0, 60)
    for _ in range(2):
        dataset = datasets.freeze(db, task, policy.Policy(), settings)
        with db.begin() as session:
            runs.open_run(session, dataset, "tiny", recipe.load())
    with db.read() as session:
        assert len(session.exec(select(Run)).all()) == 1


def test_a_timetable_counts_from_the_end_of_the_last_turn_even_of_one_that_changed_nothing(
    db: Database, fill: Callable[[int, int], str], settings: DistillSettings
) -> None:
    task = fill(0, 300)
    trained(db, task, settings)
    change(db, task, policy={"cron": "0 3 * * *"}, turned_at=now() + timedelta(hours=24))
    assert not look(db, task, hours=24.1).now
    assert look(db, task, hours=48.2).now


def test_a_turn_that_could_not_train_is_not_due_again_at_once(db: Database, fill: Callable[[int, int], str]) -> None:
    task = fill(0, 300)
    change(db, task, turned_at=now())
    assert "not before" in look(db, task).why
    assert look(db, task, hours=25) == due.Due(False, "there is nothing new since the last turn")
    fill(300, 301)
    assert look(db, task, hours=25).now


def test_growth_that_rejections_eat_up_is_looked_at_once_and_not_at_every_tick(
    db: Database, fill: Callable[[int, int], str], settings: DistillSettings
) -> None:
    task = fill(0, 300)
    trained(db, task, settings)
    fill(300, 450)
    assert look(db, task, hours=25).now
    change(db, task, turned_at=now() + timedelta(hours=25), policy={"min_hours": 0})
    assert not look(db, task, hours=26).now


def test_where_review_is_required_only_what_a_person_approved_counts(db: Database, fill: Callable[[int, int], str]) -> None:
    task = fill(0, 300)
    change(db, task, policy={"train_unreviewed": False})
    assert look(db, task).why == "300 more pairs approved by a person until the first training"
    with db.begin() as session:
        for pair in session.exec(select(Pair)):
            session.add(Review(capture_id=pair.capture_id, kind=ReviewKind.APPROVE))
    assert look(db, task).now


def test_a_failed_run_is_queued_again_only_when_a_person_asks(
    db: Database, fill: Callable[[int, int], str], settings: DistillSettings
) -> None:
    task = fill(0, 60)
    dataset = datasets.freeze(db, task, policy.Policy(), settings)
    with db.begin() as session:
        run = runs.open_run(session, dataset, "tiny", recipe.load())
        run.status, run.error, run.attempts = RunStatus.FAILED, "it diverged", 5
    with db.begin() as session, pytest.raises(runs.RunFailed, match=r"ask for a training.*it diverged"):
        runs.open_run(session, dataset, "tiny", recipe.load())
    with db.begin() as session:
        again = runs.open_run(session, dataset, "tiny", recipe.load(), again=True)
        assert (again.id, again.status, again.attempts) == (run.id, RunStatus.QUEUED, 0)


def test_an_older_run_that_was_never_trained_is_taken_up_though_a_newer_one_has_ended(
    db: Database, fill: Callable[[int, int], str], settings: DistillSettings
) -> None:
    task = fill(0, 60)
    dataset = datasets.freeze(db, task, policy.Policy(), settings)
    with db.begin() as session:
        older = runs.open_run(session, dataset, "tiny", recipe.load())
    with db.begin() as session:
        runs.open_run(session, dataset, "larger", recipe.load()).status = RunStatus.FAILED
    with db.read() as session:
        found = runs.unfinished(session, task)
    assert found is not None
    assert found.id == older.id


def test_a_policy_that_cannot_be_read_is_told(db: Database, fill: Callable[[int, int], str]) -> None:
    task = fill(0, 60)
    change(db, task, policy={"growth": "much"})
    assert look(db, task) == due.Due(False, "the task's policy cannot be read: set it again")
    with db.begin() as session, pytest.raises(datasets.NotTrainable, match="policy cannot be read"):
        due.ask(session, task, "ada")
