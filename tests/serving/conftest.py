"""Settings, a base model folder, a stand-in for vLLM, and tasks with adapters."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from serving.command import Command, free_port
from serving.settings import ServingSettings
from serving.vllm import StudentServer
from store import children
from store.session import Database
from store.states import EngineStatus, Outcome
from store.tables import Adapter, Dataset, Engine, Evaluation, Run, Task, Verdict
from tests.serving import folders


@pytest.fixture
def settings(tmp_path: Path, base: Path) -> ServingSettings:
    return ServingSettings(home=tmp_path / "home", base_model=str(base), serving_tick=0.05, engine_id="engine-test")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folders.base(tmp_path / "base")


@pytest.fixture
def server() -> Iterator[StudentServer]:
    """A running stand-in for vLLM whose base model is called `base`."""
    command = fake_command(["--model", "base"])
    process = children.spawn(command.arguments, stdout=subprocess.DEVNULL)
    with StudentServer(command.url, timeout=5) as client:
        until(client.health)
        yield client
    children.stop(process, grace=0)


@pytest.fixture
def make_adapter(db: Database, settings: ServingSettings, base: Path) -> Callable[..., str]:
    """Register an adapter as distill does, folder and rows; returns its id. `arrays` and `config` are `folders.adapter`'s."""

    def make(
        task: str = "task_1", version: int = 1, verdict: Outcome | None = None, base_model: str | None = None, **given: object
    ) -> str:
        name = f"{task}@v{version}"
        folder = settings.artifacts / task / f"v{version}"
        sha256 = folders.adapter(folder, base, **given)  # type: ignore[arg-type]
        with db.begin() as session:
            if session.get(Task, task) is None:
                session.add(Task(id=task, name=task))
                session.flush()
            session.add(Dataset(id=f"ds-{name}", task_id=task, content_hash=name, path="x", train_rows=1, holdout_rows=1))
            session.flush()
            session.add(Run(id=f"run-{name}", task_id=task, dataset_id=f"ds-{name}", base_model="b", recipe={}, recipe_hash="x"))
            session.flush()
            row = Adapter(
                id=name,
                task_id=task,
                version=version,
                run_id=f"run-{name}",
                base_model=base_model or settings.base_model,
                path=str(folder.relative_to(settings.home_path)),
                sha256=sha256,
            )
            session.add(row)
        if verdict is not None:
            judge(db, name, verdict)
        return name

    return make


def judge(db: Database, adapter_id: str, outcome: Outcome) -> None:
    """Put in the verdict that distill would have come to."""
    with db.begin() as session:
        adapter = session.get_one(Adapter, adapter_id)
        evaluation = Evaluation(task_id=adapter.task_id, adapter_id=adapter_id, dataset_id=f"ds-{adapter_id}")
        session.add(evaluation)
        session.flush()
        session.add(
            Verdict(
                task_id=adapter.task_id,
                adapter_id=adapter_id,
                evaluation_id=evaluation.id,
                outcome=outcome,
                reason="z = 2.1",
                numbers={},
            )
        )


def engine_row(db: Database, *loaded: str, name: str = "engine-test", status: EngineStatus = EngineStatus.READY) -> None:
    """Say that an engine has these adapters loaded, as serving would."""
    with db.begin() as session:
        row = session.get(Engine, name) or Engine(id=name, status=status)
        row.status, row.url, row.loaded = status, "http://127.0.0.1:1", list(loaded)
        session.add(row)


def fake_command(arguments: list[str] | None = None) -> Command:
    port = free_port()
    command = [sys.executable, "-S", str(Path(__file__).with_name("fake_vllm.py")), "--port", str(port), *(arguments or [])]
    return Command(command, f"http://127.0.0.1:{port}")


def behave(server: StudentServer, **behaviour: object) -> None:
    httpx.post(f"{server.url}/fake", json=behaviour, trust_env=False).raise_for_status()


def calls(server: StudentServer) -> list[list[str]]:
    found: list[list[str]] = httpx.get(f"{server.url}/fake", trust_env=False).json()["calls"]
    return found


def until(reached: Callable[[], object], seconds: float = 20.0, each: Callable[[], object] = lambda: None) -> None:
    """Wait until `reached` is true, doing `each` in between."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that in time"
        each()
        time.sleep(0.02)
