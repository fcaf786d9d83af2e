"""The whole loop around a stand-in for vLLM: from an adapter's row to a route, and through vLLM's and the database's absences."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from sqlmodel import select

from serving import rollout
from serving.engine import Engine
from serving.preparation import Preparation
from serving.reconcile import Reconciler
from serving.settings import ServingSettings
from serving.vllm import StudentServer
from serving.worker import Worker
from store import migrate, routes, tables
from store.columns import now
from store.session import Database
from store.states import EngineStatus, Outcome, RolloutStage
from tests.serving.conftest import behave, calls, engine_row, fake_command, judge, until
from tests.serving.test_engine import HASTY

Make = Callable[..., str]


@pytest.fixture
def db(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """SQLite alone: the statements are tested on both kinds in test_rollout and test_reconcile."""
    shutil.copy(migrated, tmp_path / "stillroom.db")
    database = Database(f"sqlite:///{tmp_path}/stillroom.db")
    yield database
    database.close()


@pytest.fixture
def worker(db: Database, settings: ServingSettings, base: Path) -> Iterator[Worker]:
    engine = Engine(
        marker=f"test {settings.home_path}",
        preparation=Preparation(str(base), settings.models_path),
        build=lambda _: fake_command(["--model", settings.base_model]),
        model=settings.base_model,
        log_file=settings.logs / "vllm.log",
        start_timeout=20.0,
        timing=HASTY,
    )
    made = Worker(db, settings, engine)
    made.reconciler = Reconciler(settings, grace=0.0)
    yield made
    made.engine.stop()


def row(db: Database) -> tables.Engine:
    with db.read() as session:
        return session.get(tables.Engine, "engine-test") or tables.Engine(id="none", status=EngineStatus.DOWN)


def stage(db: Database, adapter_id: str) -> RolloutStage | None:
    with db.read() as session:
        return session.exec(select(tables.Rollout.stage).where(tables.Rollout.adapter_id == adapter_id)).first()


def target(db: Database) -> str | None:
    with db.read() as session:
        found = routes.read(session).targets.get("task_1")
    return found.adapter_id if found else None


def to_live(db: Database, worker: Worker, name: str) -> str:
    until(lambda: stage(db, name) == RolloutStage.STAGED, each=worker.tick)
    judge(db, name, Outcome.PASSED)
    until(lambda: target(db) == name, each=worker.tick)
    return name


def test_an_adapter_goes_from_its_row_to_traffic_and_the_row_says_where_vllm_is(
    db: Database, worker: Worker, make_adapter: Make, base: Path
) -> None:
    name = to_live(db, worker, make_adapter())
    engine = row(db)
    assert (engine.status, engine.loaded, engine.base_path, engine.served_name) == (
        EngineStatus.READY,
        [name],
        str(base),
        str(base),
    )
    assert engine.context == 512
    assert engine.pid is not None
    assert psutil.pid_exists(engine.pid)
    with db.read() as session:
        table = routes.read(session)
    assert (table.engines, table.loaded, table.context) == ((engine.url,), {name}, 512)


def test_a_killed_vllm_comes_back_with_the_live_adapter_and_is_not_called_ready_before(
    db: Database, worker: Worker, make_adapter: Make
) -> None:
    name = to_live(db, worker, make_adapter())
    before = row(db)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: row(db).status == EngineStatus.DOWN, each=worker.tick)
    assert row(db).loaded == []
    seen: list[tuple[EngineStatus, list[str]]] = []
    until(lambda: row(db).status == EngineStatus.READY, each=lambda: (worker.tick(), seen.append((row(db).status, row(db).loaded))))
    assert [loaded for status, loaded in seen if status == EngineStatus.READY] == [[name]]
    assert row(db).restarts == 1
    assert target(db) == name


def test_a_refused_candidate_is_told_and_does_not_stop_the_others(
    db: Database, worker: Worker, make_adapter: Make, settings: ServingSettings
) -> None:
    bad, good = make_adapter(version=1), make_adapter(version=2)
    (settings.artifacts / "task_1" / "v1" / "adapter_model.safetensors").write_bytes(b"junk")
    until(lambda: stage(db, good) == RolloutStage.STAGED, each=worker.tick)
    assert stage(db, bad) == RolloutStage.REFUSED
    assert row(db).status == EngineStatus.READY


def test_a_live_adapter_whose_file_is_damaged_is_reported_and_the_route_stays(
    db: Database, worker: Worker, make_adapter: Make, settings: ServingSettings
) -> None:
    name = to_live(db, worker, make_adapter())
    (settings.artifacts / "task_1" / "v1" / "adapter_config.json").unlink()
    os.kill(row(db).pid or 0, signal.SIGKILL)
    until(lambda: row(db).restarts == 1 and row(db).status == EngineStatus.READY, each=worker.tick)
    assert row(db).loaded == []
    assert f"{name} is not loaded" in row(db).detail
    assert target(db) == name


def test_vllm_being_down_refuses_nobody(db: Database, worker: Worker, make_adapter: Make) -> None:
    until(lambda: row(db).status == EngineStatus.READY, each=worker.tick)
    assert worker.engine.server is not None
    behave(worker.engine.server, dead=True)
    name = make_adapter()
    until(lambda: row(db).restarts == 1, each=worker.tick)
    until(lambda: stage(db, name) == RolloutStage.STAGED, each=worker.tick)


def test_what_a_person_took_back_is_unloaded_and_what_they_ask_for_is_loaded_again(
    db: Database, worker: Worker, make_adapter: Make
) -> None:
    name = to_live(db, worker, make_adapter())
    with db.begin() as session:
        rollout.rollback(session, "task_1", by="ada", why="it erred")
    until(lambda: row(db).loaded == [], each=worker.tick)
    with db.begin() as session:
        assert rollout.request_promotion(session, name, by="ada", why="it did not") is None
    until(lambda: target(db) == name, each=worker.tick)
    assert worker.engine.server is not None
    assert [call[0] for call in calls(worker.engine.server) if call[0] != "complete"] == ["load", "unload", "load"]


def test_a_database_that_is_away_stops_neither_vllm_nor_its_restart(worker: Worker, settings: ServingSettings) -> None:
    worker.db = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    until(lambda: worker.engine.state.status == EngineStatus.READY, each=worker.tick)
    os.kill(worker.engine.state.pid or 0, signal.SIGKILL)
    until(lambda: worker.engine.state.restarts == 1 and worker.engine.state.status == EngineStatus.READY, each=worker.tick)
    worker.db.close()


def test_adapters_that_were_wanted_are_loaded_again_while_the_database_is_away(
    db: Database, worker: Worker, make_adapter: Make
) -> None:
    name = to_live(db, worker, make_adapter())
    worker.db = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    os.kill(worker.engine.state.pid or 0, signal.SIGKILL)
    until(lambda: worker.engine.state.restarts == 1 and worker.outcome.loaded == (name,), each=worker.tick)
    worker.db.close()
    worker.db = db
    until(lambda: row(db).restarts == 1 and row(db).loaded == [name], each=worker.tick)


def test_an_engine_elsewhere_that_has_fallen_silent_is_not_waited_for(db: Database, worker: Worker, make_adapter: Make) -> None:
    engine_row(db, name="engine-gone")
    with db.begin() as session:
        session.get_one(tables.Engine, "engine-gone").heartbeat_at = now() - timedelta(minutes=2)
    name = make_adapter()
    until(lambda: stage(db, name) == RolloutStage.STAGED, each=worker.tick)
    with db.read() as session:
        assert session.get_one(tables.Engine, "engine-gone").status == EngineStatus.DOWN


def test_only_one_serving_at_a_time_moves_rollouts(db: Database, worker: Worker, make_adapter: Make) -> None:
    name = make_adapter()
    with db.begin() as session:
        session.add(tables.Lease(name="serving.rollout", holder="another", expires_at=now() + timedelta(hours=1)))
    until(lambda: row(db).loaded == [name], each=worker.tick)
    for _ in range(5):
        worker.tick()
    assert stage(db, name) is None
    with db.begin() as session:
        session.get_one(tables.Lease, "serving.rollout").expires_at = now()
    until(lambda: stage(db, name) == RolloutStage.STAGED, each=worker.tick)


def test_run_stops_vllm_and_says_so(db: Database, worker: Worker) -> None:
    stop = threading.Event()
    watcher = threading.Thread(target=lambda: (until(lambda: row(db).status == EngineStatus.READY), stop.set()))
    watcher.start()
    worker.run(stop)
    watcher.join()
    assert (row(db).status, row(db).detail, row(db).pid) == (EngineStatus.DOWN, "stopped", None)


def test_the_process_serves_a_students_url_refuses_a_second_one_and_ends_on_sigterm(
    server: StudentServer, settings: ServingSettings, base: Path
) -> None:
    environment = {**os.environ, "STILLROOM_HOME": str(settings.home), "STILLROOM_STUDENT_URL": server.url}
    environment |= {"STILLROOM_BASE_MODEL": str(base), "STILLROOM_ENGINE_ID": "engine-test", "STILLROOM_SERVING_TICK": "0.05"}
    settings.home_path.mkdir(parents=True, exist_ok=True)
    own = Database(settings.url)
    process = subprocess.Popen([sys.executable, "-m", "serving"], env=environment, stderr=subprocess.PIPE)
    try:
        until(lambda: (settings.home_path / "stillroom.db").exists())
        migrate.upgrade(own)
        until(lambda: row(own).status == EngineStatus.READY)
        assert row(own).url == server.url
        second = subprocess.run([sys.executable, "-m", "serving"], env=environment, capture_output=True, text=True, timeout=20)
        assert second.returncode == 1
        assert "runs already" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert row(own).status == EngineStatus.DOWN
        assert server.health()
    finally:
        process.kill()
        process.communicate()
        own.close()
