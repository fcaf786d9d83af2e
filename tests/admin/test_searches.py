"""The Pareto table and the learning curve, for people, over HTTP and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import Result

from admin import runs, searches
from admin.problems import NotFound
from store.columns import now
from store.session import Database
from store.settings import StoreSettings
from store.states import RunPurpose, RunStatus, SearchStatus, TrialStatus
from store.tables import LearningCurve, Run, Search, Task, Trial
from tests.admin import rows

PNG = b"\x89PNG not really"
OUTLOOK = {"rows": 800, "chance": 0.34, "low": 0.01, "error": 0.02, "high": 0.04}
SAYS = "P(pass at +500 rows) = 34%. Collect a doubling, to 800 rows, and train again."


@pytest.fixture
def task(sqlite: Database, tmp_path: Path) -> Task:
    """A task with a search of three trials, of which the second was chosen, and a learning curve."""
    with sqlite.begin() as session:
        task = rows.numbers(session, 0, 16)
        task.name = "odd or even"
        adapter = rows.trained(session, task)
        chosen = session.get_one(Run, adapter.run_id)
        chosen.score = score(exact=97)
        chosen.estimate = {"seconds": 50.0, "peak_memory": 2_000_000_000}
        usual = trial_run(session, chosen, "r0", 1.0, exact=94)
        search = Search(
            task_id=task.id, dataset_id=chosen.dataset_id, base_model="smollm2", recipe={}, recipe_hash="h", space={},
            status=SearchStatus.DONE, budget_seconds=400.0, spent_seconds=412.5, run_id=chosen.id, says="Number 1 is the cheapest.",
            plot="artifacts/pareto.png", finished_at=now(),
        )  # fmt: skip
        session.add(search)
        session.flush()
        stopped = trial_run(session, chosen, "r2", 0.125)
        add_trial(session, search, 0, usual, status=TrialStatus.COMPLETE, chance=0.3)
        add_trial(session, search, 1, chosen, status=TrialStatus.COMPLETE, chance=0.8, front=True, rate=3e-3)
        add_trial(session, search, 2, stopped, status=TrialStatus.STOPPED, rate=2e-4)
        session.add(
            LearningCurve(
                run_id=chosen.id, task_id=task.id,
                points=[{"rows": 200, "errors": 10.0, "judged": 100}], says=SAYS, finished_at=now(),
                advice={"do": "collect", "now": OUTLOOK, "more": OUTLOOK, "double": OUTLOOK, "says": SAYS,
                        "worth": {"worth_it": None, "saved_a_day": None, "days": None, "says": "not known"}},
            )
        )  # fmt: skip
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "pareto.png").write_bytes(PNG)
    return task


def score(exact: int) -> dict[str, Any]:
    return {"judged": 100, "exact": exact, "loss": 0.1, "bits": 0.2, "latency_ms": 80.0, "answer_seconds": 0.09, "seconds": 3.0}


def trial_run(session: Any, like: Run, name: str, share: float, exact: int | None = None) -> Run:
    run = Run(
        task_id=like.task_id, dataset_id=like.dataset_id, base_model="smollm2", recipe={}, recipe_hash=name, share=share,
        purpose=RunPurpose.TRIAL, status=RunStatus.SUCCEEDED, score=score(exact) if exact is not None else None,
    )  # fmt: skip
    session.add(run)
    session.flush()
    return run


def add_trial(session: Any, search: Search, number: int, run: Run, rate: float = 1e-3, **columns: Any) -> None:
    choices = {"learning_rate": rate, "epochs": 2, "rank": 8, "strip": False, "base_model": "smollm2"}
    rungs = [{"share": run.share, "run_id": run.id, "loss": 0.5, "seconds": 100.0}]
    session.add(Trial(search_id=search.id, number=number, choices=choices, base_model="smollm2", recipe={}, rungs=rungs, **columns))


def test_the_pareto_table_has_each_trial_with_its_quality_cost_and_latency(sqlite: Database, task: Task) -> None:
    with sqlite.read() as session:
        found = searches.pareto(session, "odd or even")
    usual, chosen, stopped = found.trials
    assert (chosen.exact, chosen.latency_ms, chosen.answer_seconds, chosen.chance) == (0.97, 80.0, 0.09, 0.8)
    assert [trial.chosen for trial in found.trials] == [False, True, False]
    assert [trial.front for trial in found.trials] == [False, True, False]
    assert usual.exact == 0.94
    assert (stopped.status, stopped.share, stopped.exact, stopped.train_seconds) == (TrialStatus.STOPPED, 0.125, None, 100.0)


def test_runs_say_what_they_are_for_and_what_was_expected_of_them(sqlite: Database, task: Task, tmp_path: Path) -> None:
    with sqlite.read() as session:
        [candidate] = runs.listing(session, purpose=RunPurpose.CANDIDATE).data
        trials = runs.listing(session, purpose=RunPurpose.TRIAL).data
        detail = runs.one(session, candidate.id, StoreSettings(home=tmp_path))
    assert (candidate.estimated_seconds, candidate.estimated_memory) == (50.0, 2_000_000_000)
    assert sorted(trial.share for trial in trials) == [0.125, 1.0]
    assert detail.score == score(exact=97)


def test_the_api_has_table_plot_and_curve(client: TestClient, task: Task) -> None:
    assert [trial["number"] for trial in client.get("/api/tasks/odd or even/pareto").json()["trials"]] == [0, 1, 2]
    plot = client.get(f"/api/tasks/{task.id}/pareto.png")
    assert (plot.content, plot.headers["content-type"]) == (PNG, "image/png")
    curve = client.get(f"/api/tasks/{task.id}/curve").json()
    assert (curve["says"], curve["advice"]["do"]) == (SAYS, "collect")
    assert len(client.get("/api/runs?purpose=trial").json()["data"]) == 2


def test_the_command_line_shows_them(stillroom: Callable[..., Result], task: Task) -> None:
    shown = stillroom("runs", "pareto", "odd or even")
    assert shown.exit_code == 0, shown.output
    assert "97.0%" in shown.stdout
    assert "chosen" in shown.stdout
    assert "Number 1 is the cheapest." in shown.stdout
    assert len(json.loads(stillroom("runs", "pareto", task.id, "--json").stdout)["trials"]) == 3
    assert SAYS in stillroom("runs", "curve", "odd or even").stdout
    assert "trial, 12%" in stillroom("runs").stdout
    assert len(json.loads(stillroom("runs", "--purpose", "trial", "--json").stdout)["data"]) == 2


def test_a_task_without_any_says_how_to_get_one(sqlite: Database, tmp_path: Path) -> None:
    with sqlite.begin() as session:
        task = rows.numbers(session, 0, 4)
    with sqlite.read() as session:
        with pytest.raises(NotFound, match="search=on"):
            searches.pareto(session, task.id)
        with pytest.raises(NotFound, match="curve=always"):
            searches.curve(session, task.id)
        with pytest.raises(NotFound, match="search=on"):
            searches.plot(session, task.id, StoreSettings(home=tmp_path))
