"""A stand-in for vLLM as a real process: started, killed, hung, started again, and nothing left behind."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serving import command
from serving.command import Command, VllmMissing
from serving.engine import MARKER, Attached, Engine, reap
from serving.preparation import Preparation
from serving.settings import ServingSettings
from serving.vllm import StudentServer
from serving.watch import Timing
from store import children
from store.states import EngineStatus
from tests.serving.conftest import behave, fake_command, until

HASTY = Timing(
    probe_every=0.1, probe_timeout=1.0, probe_again=0.05, first_pause=0.05, longest_pause=0.4, steady=3600.0, missing_pause=0.05
)
Make = Callable[..., Engine]


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Iterator[Make]:
    """An engine that starts the stand-in with these arguments; stopped at the end."""
    made: list[Engine] = []

    def make(
        *arguments: str, model: Path = base, build: Callable[[Path], Command] | None = None, start_timeout: float = 20.0
    ) -> Engine:
        engine = Engine(
            marker=f"test {tmp_path}",
            preparation=Preparation(str(model), tmp_path / "models"),
            build=build or (lambda _: fake_command(["--model", "base", *arguments])),
            model="base",
            log_file=tmp_path / "logs" / "vllm.log",
            start_timeout=start_timeout,
            timing=HASTY,
        )
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.stop()


def ready(engine: Engine) -> Engine:
    until(lambda: engine.state.status == EngineStatus.READY, each=engine.tick)
    return engine


def family(engine: Engine) -> list[psutil.Process]:
    """vLLM's process and its engine process."""
    assert engine.state.pid is not None
    parent = psutil.Process(engine.state.pid)
    until(lambda: parent.children())
    return [parent, *parent.children()]


def gone(processes: list[psutil.Process]) -> bool:
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


def test_it_prepares_the_base_starts_answers_and_stops_with_everything_it_started(make: Make, base: Path) -> None:
    engine = make()
    assert engine.tick().status == EngineStatus.STARTING
    ready(engine)
    state = engine.state
    assert (state.base_path, state.restarts, state.detail) == (base, 0, "")
    assert engine.server is not None
    assert engine.server.models() == ["base"]
    assert engine.server.url == state.url
    processes = family(engine)
    engine.stop()
    until(lambda: gone(processes))
    assert (engine.state.status, engine.state.url, engine.state.pid) == (EngineStatus.DOWN, None, None)


def test_a_killed_vllm_is_started_again_and_its_engine_process_does_not_stay(make: Make) -> None:
    engine = ready(make())
    processes, before = family(engine), engine.state
    processes[0].kill()
    until(lambda: engine.state.status == EngineStatus.DOWN, each=engine.tick)
    assert "was killed by SIGKILL" in engine.state.detail
    assert engine.state.url is None
    ready(engine)
    until(lambda: gone(processes))
    assert engine.state.restarts == 1
    assert engine.state.pid != before.pid
    assert engine.state.url != before.url


def test_the_pause_before_a_restart_grows_and_a_vllm_that_never_starts_has_failed_and_says_why(make: Make) -> None:
    engine = make("--crash", "no common block size")
    pauses: list[str] = []
    while engine.state.restarts < 5:
        until(lambda: engine.state.pid is not None, each=engine.tick)
        until(lambda: engine.state.pid is None, each=engine.tick)
        pauses += re.findall(r"started again in (\S+) s", engine.state.detail)
    assert pauses == ["0.05", "0.1", "0.2", "0.4", "0.4"]
    assert engine.state.status == EngineStatus.FAILED
    assert "ValueError: no common block size" in engine.state.detail
    assert str(engine.log_file) in engine.state.detail
    logs = sorted(file.name for file in engine.log_file.parent.iterdir())
    assert logs == ["vllm.group", "vllm.log", "vllm.log.1", "vllm.log.2", "vllm.log.3"]


def test_a_hung_vllm_is_started_again(make: Make) -> None:
    engine = ready(make())
    processes = family(engine)
    assert engine.server is not None
    behave(engine.server, hang=True)
    until(lambda: engine.state.restarts == 1, each=engine.tick)
    assert "does not generate any more" in engine.state.detail
    ready(engine)
    until(lambda: gone(processes))


def test_a_vllm_whose_engine_is_dead_is_started_again_although_its_health_is_good(make: Make) -> None:
    engine = ready(make())
    assert engine.server is not None
    behave(engine.server, dead=True)
    assert engine.server.health()
    until(lambda: engine.state.restarts == 1, each=engine.tick)
    assert "EngineCore encountered" in engine.state.detail
    ready(engine)


def test_one_failed_probe_is_no_reason_to_restart(make: Make) -> None:
    engine = ready(make())
    assert engine.server is not None
    behave(engine.server, dead=True)
    until(lambda: engine._watch is not None and engine._watch.failures == 1, each=engine.tick)
    behave(engine.server, dead=False)
    until(lambda: engine._watch is not None and engine._watch.failures == 0, each=engine.tick)
    assert (engine.state.restarts, engine.state.status) == (0, EngineStatus.READY)


def test_a_vllm_that_does_not_answer_in_time_is_killed(make: Make) -> None:
    engine = make("--mute", start_timeout=1.0)
    until(lambda: engine.state.restarts == 1, each=engine.tick)
    assert "did not answer within 1 s" in engine.state.detail


def test_a_missing_base_model_is_told_and_found_once_it_is_there(make: Make, base: Path, tmp_path: Path) -> None:
    engine = make(model=tmp_path / "later")
    until(lambda: engine.state.status == EngineStatus.FAILED, each=engine.tick)
    assert f"{tmp_path / 'later'} does not exist" in engine.state.detail
    base.rename(tmp_path / "later")
    ready(engine)
    assert engine.state.base_path == tmp_path / "later"


def test_a_damaged_base_model_is_told_and_does_not_end_serving(make: Make, base: Path, settings: ServingSettings) -> None:
    whole = (base / "config.json").read_text()
    (base / "config.json").write_text(whole[:20])
    engine = make(build=lambda path: command.build(settings, path) and fake_command(["--model", "base"]))
    until(lambda: engine.state.status == EngineStatus.FAILED, each=engine.tick)
    assert "is damaged" in engine.state.detail
    (base / "config.json").write_text(whole)
    ready(engine)
    assert engine.state.context == 512


def test_a_missing_vllm_is_told_and_found_once_it_is_there(make: Make) -> None:
    installed = False

    def build(_: Path) -> Command:
        if not installed:
            raise VllmMissing
        return fake_command(["--model", "base"])

    engine = make(build=build)
    until(lambda: engine.state.status == EngineStatus.FAILED, each=engine.tick)
    assert "in the checkout: make setup" in engine.state.detail
    installed = True
    ready(engine)


def test_vllm_dies_with_its_supervisor(base: Path, tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from serving.engine import Engine
from serving.preparation import Preparation
from tests.serving.conftest import fake_command
engine = Engine("m", Preparation({str(base)!r}, Path("/nowhere")), lambda _: fake_command(["--model", "base"]), "base",
                Path({str(tmp_path)!r}) / "vllm.log", 20.0)
while engine.tick().status != "ready":
    time.sleep(0.02)
print(engine.state.pid, flush=True)
time.sleep(600)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    until(lambda: gone([psutil.Process(pid)]) if psutil.pid_exists(pid) else True, seconds=10)


def test_what_an_earlier_life_left_behind_is_killed_and_nothing_else(tmp_path: Path) -> None:
    # vLLM's engine process writes its title over its environment: it is known by its group.
    titled = "subprocess.Popen(['VLLM::EngineCore', '600'], executable='/bin/sleep', env={})"
    code = f"import subprocess, time; print({titled}.pid, flush=True); time.sleep(600)"
    ours, others = (
        children.spawn([sys.executable, "-c", code], stdout=subprocess.PIPE, environment={MARKER: marker})
        for marker in ("engine-1 /home/a", "engine-1 /home/b")
    )
    (tmp_path / "vllm.group").write_text(str(ours.pid))
    try:
        orphans, strangers = (
            [psutil.Process(process.pid), psutil.Process(int(process.stdout.readline()))]  # type: ignore[union-attr]
            for process in (ours, others)
        )
        assert reap("engine-1 /home/a", tmp_path / "vllm.log") == 2
        assert gone(orphans)
        assert not any(gone([stranger]) for stranger in strangers)
        assert reap("engine-1 /home/a", tmp_path / "vllm.log") == 0
    finally:
        for process in (ours, others):
            children.stop(process, grace=0)


def test_somebody_elses_vllm_is_watched_and_never_stopped(server: StudentServer, base: Path, tmp_path: Path) -> None:
    engine = Attached(server.url, Preparation(str(base), tmp_path), HASTY)
    until(lambda: engine.state.status == EngineStatus.READY, each=engine.tick)
    assert (engine.state.base_path, engine.state.served_name) == (base, "base")
    behave(server, dead=True)
    until(lambda: engine.state.restarts == 1, each=engine.tick)
    behave(server, dead=False)
    until(lambda: engine.state.status == EngineStatus.READY and engine._watch is not None, each=engine.tick)
    engine.stop()
    assert server.health()


def test_somebody_elses_vllm_that_is_not_there_is_down(base: Path, tmp_path: Path) -> None:
    engine = Attached("http://127.0.0.1:1", Preparation(str(base), tmp_path), HASTY)
    until(lambda: engine.state.status == EngineStatus.DOWN, each=engine.tick)
    assert "http://127.0.0.1:1 cannot be reached" in engine.state.detail
