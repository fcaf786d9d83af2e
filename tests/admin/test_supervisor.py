"""Rooms as processes: started, started again, stopped in order."""

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from admin import supervisor
from admin.supervisor import Child, Supervisor

SLEEP = "import time; print('ready', flush=True); time.sleep(60)"
POLITE = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('ready', flush=True); time.sleep(60)"
)


def child(folder: Path, code: str, room: str = "distill") -> Child:
    return Child(room, [sys.executable, "-c", code], folder / f"{room}.log")


def until_ready(*children: Child) -> None:
    end = time.monotonic() + 10
    while not all("ready" in each.last_line() for each in children):
        assert time.monotonic() < end
        time.sleep(0.02)


def tick_until_gone(supervised: Supervisor) -> None:
    """Ticks until it was noticed that the only child has died."""
    [only] = supervised.children
    restarts, end = only.restarts, time.monotonic() + 10
    while only.restarts == restarts:
        supervised.tick()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_room_is_started_once_and_its_output_is_in_its_log(tmp_path: Path, said: list[str]) -> None:
    room = child(tmp_path / "logs", SLEEP)
    supervised = Supervisor([room], said.append)
    supervised.tick()
    assert room.process is not None
    pid = room.process.pid
    until_ready(room)
    supervised.tick()
    assert room.process.pid == pid
    supervised.stop()
    assert not psutil.pid_exists(pid)
    assert said[0].startswith(f"distill started (pid {pid})")


def test_a_dead_room_is_started_again_later_and_later(tmp_path: Path, said: list[str]) -> None:
    room = child(tmp_path, "print('no such model'); raise SystemExit(3)")
    supervised = Supervisor([room], said.append)
    pauses = []
    for _ in range(8):
        supervised.tick()
        tick_until_gone(supervised)
        pauses.append(round(room.due - time.monotonic()))
        room.due = 0.0
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert room.restarts == 8
    assert "ended with exit code 3; started again in 1 s. Its log ends: no such model" in said[1]


def test_a_room_that_was_well_for_long_starts_with_a_short_pause_again(tmp_path: Path, said: list[str]) -> None:
    room = child(tmp_path, SLEEP)
    room.pause = 30.0
    supervised = Supervisor([room], said.append)
    supervised.tick()
    assert room.process is not None
    room.started -= supervisor.STEADY + 1
    room.process.kill()
    tick_until_gone(supervised)
    assert room.pause == 2.0
    assert "was killed by SIGKILL; started again in 1 s" in said[-1]


def test_a_dead_room_is_not_started_before_its_pause_is_over(tmp_path: Path, said: list[str]) -> None:
    room = child(tmp_path, SLEEP)
    supervised = Supervisor([room], said.append)
    supervised.tick()
    assert room.process is not None
    room.process.kill()
    tick_until_gone(supervised)
    supervised.tick()
    assert room.process is None
    assert 0 < room.due - time.monotonic() <= 1


def test_what_a_dead_room_left_behind_is_killed(tmp_path: Path, said: list[str]) -> None:
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print('ready', p.pid, flush=True); time.sleep(60)"
    room = child(tmp_path, code)
    supervised = Supervisor([room], said.append)
    supervised.tick()
    until_ready(room)
    assert room.process is not None
    left = psutil.Process(int(room.last_line().split()[1]))
    room.process.kill()
    tick_until_gone(supervised)
    assert left.wait(5) is None or not left.is_running()


def test_the_proxy_has_drained_before_anything_else_is_stopped(tmp_path: Path, said: list[str]) -> None:
    slow = "import signal, sys, time\n" \
        "def drain(*_): time.sleep(0.5); sys.exit(0)\n" \
        "signal.signal(signal.SIGTERM, drain); print('ready', flush=True); time.sleep(60)"  # fmt: skip
    rooms = [child(tmp_path, POLITE, "admin"), child(tmp_path, slow, "proxy"), child(tmp_path, POLITE, "distill")]
    supervised = Supervisor(rooms, said.append)
    supervised.tick()
    until_ready(*rooms)
    supervised.stop()
    stopped = [line.split()[0] for line in said if "stopped" in line]
    assert stopped[0] == "proxy"
    assert set(stopped) == {"proxy", "admin", "distill"}
    assert all(room.process is not None and room.process.returncode == 0 for room in rooms)


def test_rooms_that_do_not_stop_can_be_killed(tmp_path: Path, said: list[str]) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    room = child(tmp_path, deaf)
    supervised = Supervisor([room], said.append)
    supervised.tick()
    until_ready(room)
    supervised.kill()
    assert room.process is not None
    assert room.process.wait(5) == -signal.SIGKILL


def test_a_long_log_is_set_aside(tmp_path: Path, said: list[str]) -> None:
    room = child(tmp_path, POLITE)
    with room.log.open("wb") as file:
        file.truncate(supervisor.LOG_BYTES + 1)
    supervised = Supervisor([room], said.append)
    supervised.tick()
    until_ready(room)
    supervised.stop()
    assert (tmp_path / "distill.old.log").stat().st_size > supervisor.LOG_BYTES
    assert room.log.stat().st_size < 1000


def test_rooms_run_this_code_whatever_folder_the_person_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    command = [*supervisor.room_command("x")[:2], "-c", "import store.ids; print('ready', store.ids.__file__)"]
    room = Child("x", command, tmp_path / "x.log")
    supervised = Supervisor([room], print, supervisor.room_environment())
    supervised.tick()
    until_ready(room)
    assert room.last_line() == f"ready {supervisor.ROOT / 'store' / 'ids.py'}"
