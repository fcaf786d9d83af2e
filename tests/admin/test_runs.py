"""Runs with their progress and curve, evaluations with their items."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from admin import runs
from admin.problems import NotFound
from store.columns import now
from store.session import Database
from store.settings import StoreSettings
from store.states import Outcome, RunStatus
from store.tables import Run, Task
from tests.admin import rows


@pytest.fixture
def settings(tmp_path: Path) -> StoreSettings:
    return StoreSettings(home=tmp_path)


@pytest.fixture
def task(db: Database) -> Task:
    with db.begin() as session:
        return rows.numbers(session, 0, 16)


def test_a_run_shows_its_progress_and_what_is_left(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.trained(session, task)
        run = session.exec(select(Run)).one()
        run.status, run.step, run.total_steps, run.started_at = RunStatus.RUNNING, 20, 80, now() - timedelta(seconds=10)
    with db.read() as session:
        [line] = runs.listing(session).data
    assert line.progress == 0.25
    assert line.seconds_left == pytest.approx(30, rel=0.2)
    assert line.task == task.name


def test_a_finished_run_is_all_done(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.trained(session, task)
    with db.read() as session:
        [line] = runs.listing(session, status=RunStatus.SUCCEEDED).data
        assert runs.listing(session, status=RunStatus.FAILED).data == []
    assert (line.progress, line.seconds_left) == (1.0, None)


def test_one_run_has_its_curve_recipe_and_adapter(db: Database, task: Task, settings: StoreSettings) -> None:
    with db.begin() as session:
        adapter = rows.trained(session, task)
    with db.read() as session:
        one = runs.one(session, adapter.run_id, settings)
    assert [point.loss for point in one.curve] == [2.0, 1.0, pytest.approx(2 / 3)]
    assert (one.recipe, one.adapter_id) == ({"rank": 16}, adapter.id)


def test_runs_are_filtered_by_task(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.trained(session, task)
    with db.read() as session:
        assert len(runs.listing(session, task_id=task.id).data) == 1
        assert runs.listing(session, task_id="task_other").data == []


def test_an_evaluation_shows_its_counts_and_the_verdict(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.trained(session, task, outcome=Outcome.FAILED)
    with db.read() as session:
        [line] = runs.evaluations(session, task_id=task.id).data
    assert (line.answered, line.total, line.agreed, line.hard_errors) == (4, 4, 3, 1)
    assert (line.outcome, line.reason) == (Outcome.FAILED, "as counted")


def test_disagreements_come_first_page_by_page(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.trained(session, task)
    with db.read() as session:
        [evaluation] = runs.evaluations(session).data
        first = runs.items(session, evaluation.id, limit=2)
        second = runs.items(session, evaluation.id, after=first.data[-1].pair_id, limit=2)
    assert [item.agrees for item in [*first.data, *second.data]] == [False, True, True, True]
    assert (first.has_more, second.has_more) == (True, False)
    assert len({item.pair_id for item in [*first.data, *second.data]}) == 4
    assert all(item.prompt.endswith("?") for item in first.data)


def test_unknown_ones_are_told(db: Database, settings: StoreSettings) -> None:
    with db.read() as session:
        with pytest.raises(NotFound, match="stillroom runs"):
            runs.one(session, "run_nothing", settings)
        with pytest.raises(NotFound, match="stillroom evaluations"):
            runs.items(session, "eval_nothing")
