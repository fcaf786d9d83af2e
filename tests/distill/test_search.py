"""A search with real trainings of a tiny model: within its budget, gone on with after a stop, its choice a candidate."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import select

from distill import datasets, due, estimate, pipeline, recipe, runs, scoring, search
from distill.settings import DistillSettings
from store.policy import Policy
from store.session import Database
from store.states import AdapterStatus, RunPurpose, RunStatus, SearchStatus, TrialStatus
from store.tables import Adapter, Dataset, Run, Search, Task, Trial
from tests.distill.conftest import exchange

POLICY = Policy(search="on", validation=0.3, holdout=0.4, search_trainings=1.0)


class Stop(Exception):
    """This process is told to stop."""


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    path = tmp_path / "recipe.toml"
    path.write_text("epochs = 1\nrank = 4\n")
    return DistillSettings(home=tmp_path, recipe=path, compute_usd_hour=3.6)


@pytest.fixture
def dataset(db: Database, put: Callable[..., str], settings: DistillSettings) -> Dataset:
    """Some 90 rows to train on: the first rung is half of them."""
    task = put(*(exchange(str(n), "even" if n % 2 == 0 else "odd") for n in range(200)))
    with db.begin() as session:
        session.get_one(Task, task).policy = POLICY.model_dump(exclude_defaults=True)
    pipeline.gather(db, task)
    return datasets.freeze(db, task, POLICY, settings)


def begun(db: Database, dataset: Dataset, settings: DistillSettings, policy: Policy = POLICY) -> str:
    with db.begin() as session:
        return search.open_search(session, dataset, "tiny", recipe.load(settings.recipe), policy, settings, again=False).id


def trials(db: Database) -> list[Trial]:
    with db.read() as session:
        return list(session.exec(select(Trial).order_by(Trial.number)))  # type: ignore[arg-type]


def test_a_search_that_is_stopped_goes_on_where_it_was_and_its_choice_is_a_candidate(
    db: Database, dataset: Dataset, base: Path, settings: DistillSettings
) -> None:
    assert search.is_due(POLICY, dataset)
    assert scoring.LEAST_ROWS * 2 <= dataset.train_rows < scoring.LEAST_ROWS * 4
    search_id = begun(db, dataset, settings)

    def stop() -> None:
        if len(trials(db)) and trials(db)[0].rungs:
            raise Stop

    with pytest.raises(Stop):
        search.run(db, search_id, base, POLICY, settings, stop)
    with db.read() as session:
        task = session.get_one(Task, dataset.task_id)
        assert search.unfinished(session, task.id) is not None
        assert due.decide(session, task, task.created_at).why == "a turn that was begun is not at its end"
        assert runs.unfinished(session, task.id) is None  # a trial is nobody's candidate
    before = trials(db)[0].rungs
    chosen = search.run(db, search_id, base, POLICY, settings, lambda: None)
    after = trials(db)
    assert after[0].rungs[: len(before)] == before
    assert [rung["share"] for rung in after[0].rungs] == [0.5, 1.0]
    assert after[0].status == TrialStatus.COMPLETE
    assert after[0].choices == {"learning_rate": 1e-3, "epochs": 1, "rank": 4, "strip": False, "base_model": "tiny"}
    assert 1 <= len(after) <= 3
    with db.read() as session:
        found = session.get_one(Search, search_id)
        run = session.get_one(Run, chosen.id)
        adapter = session.exec(select(Adapter)).one()
        first = session.get_one(Run, after[0].rungs[0]["run_id"])
        assert search.unfinished(session, found.task_id) is None
        assert runs.unfinished(session, found.task_id) == run
    assert (found.status, found.run_id, adapter.run_id) == (SearchStatus.DONE, run.id, run.id)
    assert (run.purpose, run.share, adapter.status) == (RunPurpose.CANDIDATE, 1.0, AdapterStatus.CANDIDATE)
    assert (settings.home_path / adapter.path / "adapter_model.safetensors").is_file()
    assert (settings.home_path / (found.plot or "")).read_bytes().startswith(b"\x89PNG")
    assert found.says.startswith(f"Of {len(after)} trials, number ")
    assert found.spent_seconds == pytest.approx(sum(rung["seconds"] for trial in after for rung in trial.rungs), abs=1)
    assert run.score is not None
    assert run.score["judged"] == dataset.validation_rows
    assert (first.purpose, first.share) == (RunPurpose.TRIAL, 0.5)
    assert not settings.run_folder(first.id).exists()  # what is no student's any more is deleted
    assert any(trial.front for trial in after)

    # What was expected: counted and measured before the first, known from then on; and what it took.
    assert first.estimate is not None
    assert first.took is not None
    expected = estimate.Estimate.read(first.estimate)
    assert expected.pace.measured == "a few steps"
    assert expected.usd == pytest.approx(expected.seconds * 0.001, rel=0.01)
    assert expected.work.computed * 0.5 == pytest.approx(first.took["computed_tokens"], rel=0.1)
    assert 0.1 < expected.seconds / (first.train_seconds or 0) < 10
    assert search.run(db, search_id, base, POLICY, settings, lambda: None).id == run.id


def test_a_search_whose_trials_all_fail_says_why_and_is_tried_again_only_when_asked(
    db: Database, dataset: Dataset, tmp_path: Path, settings: DistillSettings
) -> None:
    search_id = begun(db, dataset, settings)
    nothing = tmp_path / "nothing"
    with pytest.raises(runs.RunFailed, match=r"nothing to choose from: .* is no model folder"):
        search.run(db, search_id, nothing, POLICY, settings, lambda: None)
    assert {trial.status for trial in trials(db)} == {TrialStatus.FAILED}
    with pytest.raises(runs.RunFailed, match="ask for a training"):
        begun(db, dataset, settings)
    with db.begin() as session:
        again = search.open_search(session, dataset, "tiny", recipe.load(settings.recipe), POLICY, settings, again=True)
    assert (again.id, again.status, trials(db)) == (search_id, SearchStatus.RUNNING, [])


def test_a_budget_is_hours_or_money_or_some_usual_trainings(db: Database, dataset: Dataset, settings: DistillSettings) -> None:
    def budget(**changes: float) -> float | None:
        with db.begin() as session:
            for old in session.exec(select(Search)):
                session.delete(old)
        with db.read() as session:
            policy = POLICY.model_copy(update=changes)
        search_id = begun(db, dataset, settings, policy)
        with db.read() as session:
            return session.get_one(Search, search_id).budget_seconds

    assert budget() is None  # known when the first training is done
    assert budget(search_hours=0.5) == 1800
    assert budget(search_usd=1.8) == 1800
    assert budget(search_usd=36.0, search_hours=1.0) == 3600


def test_what_is_searched_in_follows_from_the_recipe_the_policy_and_what_serving_takes(
    db: Database, dataset: Dataset, settings: DistillSettings
) -> None:
    policy = POLICY.model_copy(update={"search_bases": ["/models/large"], "strip_from": 50})
    search_id = begun(db, dataset, settings.model_copy(update={"max_lora_rank": 16}), policy)
    with db.read() as session:
        space = session.get_one(Search, search_id).space
    assert space == {
        "learning_rate": [pytest.approx(2e-4), pytest.approx(5e-3)],
        "epochs": [1, 4],
        "rank": [4, 8, 16],
        "base_model": ["tiny", "/models/large"],
        "strip": [False, True],
    }


@pytest.mark.parametrize(
    ("policy", "due"),
    [
        (Policy(), False),
        (Policy(search="on"), True),
        (Policy(search_rows=40), True),
        (Policy(search="off", search_rows=40), False),
    ],
)
def test_small_tasks_are_trained_by_the_usual_recipe_unless_the_policy_says_otherwise(policy: Policy, due: bool) -> None:
    dataset = Dataset(task_id="t", content_hash="0", path="x", train_rows=1000, holdout_rows=100, validation_rows=100)
    assert search.is_due(policy, dataset) is due
    dataset.validation_rows = 5
    assert not search.is_due(policy, dataset)


def test_a_run_known_as_a_trial_becomes_a_candidate_when_it_is_asked_for(
    db: Database, dataset: Dataset, base: Path, settings: DistillSettings
) -> None:
    usual = recipe.load(settings.recipe)
    quick = settings.model_copy(update={"estimate": False})
    with db.begin() as session:
        trial = runs.open_run(session, dataset, "tiny", usual, purpose=RunPurpose.TRIAL)
        session.flush()
    assert runs.complete(db, trial.id, base, quick, lambda: None).status == RunStatus.SUCCEEDED
    with db.read() as session:
        assert session.exec(select(Adapter)).first() is None
    with db.begin() as session:
        assert runs.open_run(session, dataset, "tiny", usual).id == trial.id
    assert runs.train(db, trial.id, base, quick, lambda: None).run_id == trial.id


def test_the_rows_of_a_smaller_share_are_among_those_of_a_larger_one(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(f"{n}\n" for n in range(200)))
    eighth, half, whole = (runs.sample(data, share) for share in (1 / 8, 1 / 2, 1.0))
    assert (len(eighth), len(half), len(whole)) == (25, 100, 200)
    assert set(eighth) < set(half)
    assert [int(line) for line in half] == sorted(int(line) for line in half)
