"""A learning curve measured with real trainings of a tiny model, after a verdict; and gone on with after a stop."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from distill import advice, datasets, due, pipeline, recipe, runs
from distill.settings import DistillSettings
from store.columns import now
from store.policy import Policy
from store.session import Database
from store.states import AdapterStatus, EngineStatus, Outcome, RunPurpose
from store.tables import Dataset, Engine, Evaluation, LearningCurve, Run, Task, Verdict
from tests.distill.conftest import exchange

POLICY = Policy(validation=0.3, holdout=0.4)
COST = 0.002


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    path = tmp_path / "recipe.toml"
    path.write_text("epochs = 1\nrank = 2\n")
    return DistillSettings(home=tmp_path, recipe=path, estimate=False)


def frozen(db: Database, put: Callable[..., str], settings: DistillSettings, answer: Callable[[int], str]) -> Dataset:
    """200 pairs, of ten days."""
    start = now() - timedelta(days=10)
    task = put(*(exchange(str(n), answer(n), created_at=start + timedelta(days=n / 20), cost_usd=COST) for n in range(200)))
    with db.begin() as session:
        session.get_one(Task, task).policy = POLICY.model_dump(exclude_defaults=True)
        session.add(Engine(id="e", status=EngineStatus.READY, base_model="tiny", base_path=str(settings.home / "base")))
    pipeline.gather(db, task)
    return datasets.freeze(db, task, POLICY, settings)


def judged(db: Database, dataset: Dataset, base: Path, settings: DistillSettings, outcome: Outcome = Outcome.FAILED) -> Verdict:
    """A student that is trained and has its verdict."""
    with db.begin() as session:
        run = runs.open_run(session, dataset, "tiny", recipe.load(settings.recipe))
    adapter = runs.train(db, run.id, base, settings, lambda: None)
    with db.begin() as session:
        evaluation = Evaluation(task_id=dataset.task_id, adapter_id=adapter.id, dataset_id=dataset.id)
        session.add(evaluation)
        session.flush()
        verdict = Verdict(
            task_id=dataset.task_id, adapter_id=adapter.id, evaluation_id=evaluation.id, outcome=outcome, reason="", numbers={}
        )
        session.add(session.merge(adapter))
        session.merge(adapter).status = AdapterStatus.REFUSED
        session.add(verdict)
        return verdict


def test_after_a_student_that_failed_the_curve_says_what_more_data_would_do(
    db: Database, put: Callable[..., str], base: Path, settings: DistillSettings
) -> None:
    dataset = frozen(db, put, settings, lambda n: "even" if n % 2 == 0 else "odd")
    verdict = judged(db, dataset, base, settings)
    pipeline.advise(db, verdict, base, settings, lambda: None)
    with db.read() as session:
        curve = session.exec(select(LearningCurve)).one()
        point = session.exec(select(Run).where(Run.purpose == RunPurpose.POINT)).one()
        assert not advice.is_due(session, verdict, Policy(curve="always"))  # it is there
    whole = dataset.train_rows
    assert [(each["rows"], each["judged"]) for each in curve.points] == [
        (round(whole / 2), dataset.validation_rows),
        (whole, dataset.validation_rows),
    ]
    assert curve.advice is not None
    assert curve.advice["double"]["rows"] == 2 * whole
    assert f"P(pass at +500 rows) = {curve.advice['more']['chance']:.0%}" in curve.says
    assert "20 requests a day at $0.002 each" in curve.says
    assert curve.advice["worth"]["worth_it"] is True  # the machine's price is nothing
    assert not settings.run_folder(point.id).exists()

    # It was stopped before its end: the turn ends with it, and trains nothing anew.
    with db.begin() as session:
        session.get_one(LearningCurve, curve.run_id).finished_at = None
        session.get_one(Task, dataset.task_id).turned_at = now()
    with db.read() as session:
        assert due.decide(session, session.get_one(Task, dataset.task_id), now()).why == "a turn that was begun is not at its end"
    ended = pipeline.turn(db, dataset.task_id, settings)
    assert ended is not None
    assert ended.id == verdict.id
    with db.read() as session:
        again = session.get_one(LearningCurve, curve.run_id)
    assert (again.says, again.points) == (curve.says, curve.points)
    assert again.finished_at is not None


def test_of_free_text_nothing_is_said_that_takes_a_judge(
    db: Database, put: Callable[..., str], base: Path, settings: DistillSettings
) -> None:
    dataset = frozen(
        db, put, settings, lambda n: f"The number {n} is one of many, and nothing more can be said of it here than {n * 7}."
    )
    verdict = judged(db, dataset, base, settings)
    pipeline.advise(db, verdict, base, settings, lambda: None)
    with db.read() as session:
        curve = session.exec(select(LearningCurve)).one()
    assert (curve.says, curve.advice, curve.points) == (advice.TEXT, None, [])


@pytest.mark.parametrize(
    ("outcome", "policy", "is_due"),
    [
        (Outcome.PASSED, Policy(), False),
        (Outcome.PASSED, Policy(curve="always"), True),
        (Outcome.INSUFFICIENT, Policy(), True),
        (Outcome.FAILED, Policy(curve="never"), False),
    ],
)
def test_a_curve_is_measured_where_the_student_did_not_pass_or_always(
    db: Database, put: Callable[..., str], settings: DistillSettings, outcome: Outcome, policy: Policy, is_due: bool
) -> None:
    from store.tables import Adapter

    dataset = frozen(db, put, settings, str)
    with db.begin() as session:
        run = runs.open_run(session, dataset, "tiny", recipe.load(settings.recipe))
        session.flush()
        session.add(Adapter(id="a@v1", task_id=dataset.task_id, version=1, run_id=run.id, base_model="tiny", path="x", sha256="0"))
        session.flush()
        verdict = Verdict(task_id=dataset.task_id, adapter_id="a@v1", evaluation_id="e", outcome=outcome, reason="", numbers={})
        assert advice.is_due(session, verdict, policy) is is_due
