"""How a training is started: alone, as processes of this machine, on a Ray cluster; and what becomes of those that die."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlmodel import select

from distill import datasets, launch, pairs, runs
from distill.settings import DistillSettings
from store import children
from store.policy import Policy
from store.session import Database
from store.states import RunStatus
from store.tables import Run, RunStep
from tests.cluster import free_port, ray_cluster
from tests.distill.conftest import exchange
from tests.distill.test_train import recipe, rows, write


class Stop(Exception):
    """This process is told to stop."""


def trainers(out: Path) -> list[psutil.Process]:
    """The processes that train into a folder, in the order of their ranks."""
    found = []
    for each in psutil.process_iter():
        try:
            if "distill.train" in (line := each.cmdline()) and str(out) in line and "distill.launch" not in line:
                found.append((int(each.environ()["RANK"]), each))
        except (psutil.Error, KeyError):
            continue
    return [process for _, process in sorted(found, key=lambda each: each[0])]


def test_one_trainer_is_started_as_it_is_and_several_by_a_launcher(tmp_path: Path) -> None:
    def command(**settings: int | str) -> list[str]:
        return [str(part) for part in launch.command(DistillSettings(home=tmp_path, **settings), ["--out", tmp_path])]  # type: ignore[arg-type]

    trained = ["--out", str(tmp_path)]
    assert command() == [sys.executable, "-m", "distill.train", *trained]
    several = [sys.executable, "-m", "distill.launch", "--trainers", "2", "--processors", "1"]
    assert command(trainers=2) == [*several, "--", *trained]
    assert command(trainers=2, ray_address="head:6379") == [*several, "--ray", "head:6379", "--", *trained]
    assert command(ray_address="head:6379")[4] == "1"


def test_a_trainer_that_is_killed_ends_them_all_and_they_end_as_it_did(base: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(recipe(epochs=1000).model_dump_json())
    data, out = write(tmp_path / "data.jsonl", rows()), tmp_path / "run"
    command = launch.command(
        DistillSettings(home=tmp_path, trainers=2),
        ["--base", base, "--data", data, "--out", out, "--recipe", tmp_path / "recipe.json", "--json"],
    )
    child = children.spawn(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        said = iter(child.stdout)
        next(line for line in said if b'"progress"' in line)
        first, second = trainers(out)
        second.kill()
        last = list(said)[-1]
        assert b"trainer 2 of 2 was killed by signal 9" in last
        assert child.wait(20) == -signal.SIGKILL
        assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
        assert not list(out.glob(".meeting-*"))
    finally:
        children.stop(child, grace=1)


def test_trainers_that_cannot_train_say_why(base: Path, tmp_path: Path) -> None:
    arguments = ["--base", str(base), "--data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "run"), "--json"]
    with pytest.raises(launch.TrainersFailed, match=r"(?s)ended with exit code 1.*none\.jsonl cannot be read"):
        launch.run(launch.Here(), 2, arguments, tmp_path / "run", lambda _: None, lambda: False)


def gone(out: Path) -> None:
    """Wait until no process trains into that folder."""
    until = time.monotonic() + 30
    while trainers(out):
        assert time.monotonic() < until, trainers(out)
        time.sleep(0.1)


@pytest.fixture
def cluster() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


def test_a_run_on_a_cluster_reports_stops_and_goes_on_when_a_trainer_dies(
    cluster: str, db: Database, put: Callable[..., str], base: Path, tmp_path: Path
) -> None:
    settings = DistillSettings(home=tmp_path, ray_address=cluster, trainers=2)
    task = put(*(exchange(str(n), "even" if n % 2 == 0 else "odd") for n in range(60)))
    with db.begin() as session:
        pairs.extract(session, task, Policy())
    dataset = datasets.freeze(db, task, Policy(), settings)
    with db.begin() as session:
        run = runs.open_run(session, dataset, "tiny", recipe(epochs=30, patience=0, checkpoint_seconds=0.1))
    out = settings.run_folder(run.id)

    def row() -> Run:
        with db.read() as session:
            return session.get_one(Run, run.id)

    def stop() -> None:
        if row().step > 0 and list(out.glob("checkpoint-*.pt")):  # on a busy machine there may be no time for one afterwards
            raise Stop

    with pytest.raises(Stop):
        runs.complete(db, run.id, base, settings, stop)
    reached = row().step
    assert reached > 0
    assert list(out.glob("checkpoint-*.pt"))
    gone(out)
    killed: list[int] = []

    def kill() -> None:
        if not killed and row().step > reached + 5:
            for each in trainers(out)[1:]:
                actor = each.parent()
                assert actor is not None
                assert "ray::" in " ".join(actor.cmdline())
                actor.kill()
                killed.append(row().step)

    done = runs.complete(db, run.id, base, settings, kill)
    assert killed
    assert (done.status, done.step) == (RunStatus.SUCCEEDED, done.total_steps)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert done.loss is not None
    with db.read() as session:
        first = session.exec(select(RunStep).where(RunStep.run_id == run.id)).first()
    assert first is not None
    assert done.loss < first.loss / 2
    gone(out)


def test_a_cluster_that_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = launch.command(DistillSettings(home=tmp_path, ray_address=address), ["--out", tmp_path / "run", "--json"])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"the Ray cluster at {address} cannot be reached" in done.stdout
