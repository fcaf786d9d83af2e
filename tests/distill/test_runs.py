"""A run and its trainer process: killed, stopped, damaged, and what is left behind."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from distill import datasets, lineage, pairs, recipe, runs
from distill.recipe import Recipe
from distill.settings import DistillSettings
from store.policy import Policy
from store.session import Database
from store.states import RunStatus
from store.tables import Run
from tests.distill.conftest import exchange


class Stop(Exception):
    """This process is told to stop."""


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    path = tmp_path / "recipe.toml"
    path.write_text("epochs = 400\nrank = 2\ncheckpoint_seconds = 0.1\n")
    return DistillSettings(home=tmp_path, recipe=path)


@pytest.fixture
def run_id(db: Database, put: Callable[..., str], settings: DistillSettings) -> str:
    """A queued run that takes a while."""
    task = put(*(exchange(str(n), "even" if n % 2 == 0 else "odd") for n in range(60)))
    with db.begin() as session:
        pairs.extract(session, task, Policy())
    dataset = datasets.freeze(db, task, Policy(), settings)
    with db.begin() as session:
        return runs.open_run(session, dataset, "tiny", recipe.load(settings.recipe)).id


def row(db: Database, run_id: str) -> Run:
    with db.read() as session:
        return session.get_one(Run, run_id)


def checkpoints(db: Database, run_id: str, settings: DistillSettings) -> list[Path]:
    return list(settings.run_folder(run_id).glob("checkpoint-*.pt"))


def killing(db: Database, run_id: str, more_than: int, kill: Callable[[psutil.Process], None]) -> Callable[[], None]:
    """A check that kills the trainer once it has made more steps than that."""

    def check() -> None:
        if row(db, run_id).step > more_than:
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):  # ended by itself, or by the last look
                    if "distill.train" in child.cmdline():
                        kill(child)

    return check


def test_a_trainer_that_is_told_to_stop_leaves_a_checkpoint_and_only_kills_without_progress_count(
    db: Database, run_id: str, base: Path, settings: DistillSettings
) -> None:
    for _ in range(2):
        with pytest.raises(runs.TrainerKilled, match="signal 15"):
            runs.train(db, run_id, base, settings, killing(db, run_id, row(db, run_id).step, psutil.Process.terminate))
        run = row(db, run_id)
        assert (run.status, run.attempts) == (RunStatus.RUNNING, 1)
        assert checkpoints(db, run_id, settings)
    runs.fail(db, run_id, "enough", settings)
    assert not checkpoints(db, run_id, settings)


def test_a_stop_is_noticed_while_the_trainer_is_silent_and_is_no_attempt(
    db: Database, run_id: str, base: Path, settings: DistillSettings
) -> None:
    looks: list[float] = []

    def check() -> None:
        looks.append(time.monotonic())
        if len(looks) == 3:
            raise Stop

    with pytest.raises(Stop):
        runs.train(db, run_id, base, settings, check)
    assert looks[-1] - looks[0] < 3  # importing torch alone takes longer, and the trainer says nothing meanwhile
    run = row(db, run_id)
    assert (run.status, run.step, run.attempts) == (RunStatus.RUNNING, 0, 0)


def test_a_run_whose_trainer_was_killed_too_often_is_not_started_again(
    db: Database, run_id: str, base: Path, settings: DistillSettings
) -> None:
    with db.begin() as session:
        session.get_one(Run, run_id).attempts = runs.MAX_ATTEMPTS
    with pytest.raises(runs.RunFailed, match="5 times and got no further"):
        runs.train(db, run_id, base, settings, lambda: None)


def test_a_run_whose_dataset_is_damaged_says_so(db: Database, run_id: str, base: Path, settings: DistillSettings) -> None:
    next(settings.artifacts.rglob("holdout.jsonl")).unlink()
    with pytest.raises(runs.RunFailed, match="missing or not what was frozen"):
        runs.train(db, run_id, base, settings, lambda: None)


def test_an_epochs_adapter_becomes_a_candidate_of_its_own(db: Database, run_id: str, base: Path, settings: DistillSettings) -> None:
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        run.recipe = {**run.recipe, "epochs": 3, "keep_epochs": True, "patience": 0}
        run.recipe_hash = Recipe.model_validate(run.recipe).hash()
    last = runs.train(db, run_id, base, settings, lambda: None)
    with db.begin() as session:
        run = session.get_one(Run, run_id)
        with pytest.raises(runs.RunFailed, match=r"no adapter of epoch 4; of these: \[1, 2, 3\]"):
            runs.take_epoch(session, run, 4, settings)
        first = runs.take_epoch(session, run, 1, settings)
        assert runs.take_epoch(session, run, 1, settings).id == first.id
        assert runs.unfinished(session, run.task_id).id == first.run_id  # so it is judged next
        assert session.get_one(Run, first.run_id).step == run.total_steps / 3
    assert (first.version, last.version) == (2, 1)
    assert first.sha256 != last.sha256 == lineage.hashes(settings.run_folder(run_id) / "epoch-3")["adapter_model.safetensors"]
    assert all(hop.failures == 0 for hop in lineage.verify(db, first.id, settings))
