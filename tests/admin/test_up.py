"""`stillroom up`, really: started, killed in parts and as a whole, stopped."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest

from admin import home
from serving.command import free_port

T = TypeVar("T")
UP = [sys.executable, "-m", "admin.cli", "up", "--without", "distill,serving"]


# As on a machine where only the proxy image's packages are.
PLAIN = [
    sys.executable,
    "-c",
    "import sys; sys.modules.update(torch=None, vllm=None, apscheduler=None); from admin.cli import app; app(['up'])",
]


class Up:
    """A running `stillroom up`."""

    def __init__(self, folder: Path, proxy_port: int, admin_port: int, command: list[str], **settings: str) -> None:
        self.folder, self.admin_url = folder, f"http://127.0.0.1:{admin_port}"
        self.proxy_url = f"http://127.0.0.1:{proxy_port}"
        self.out = folder.parent / "up.log"
        environment = {
            **os.environ,
            "STILLROOM_HOME": str(folder),
            "STILLROOM_PROXY_PORT": str(proxy_port),
            "STILLROOM_ADMIN_PORT": str(admin_port),
            "STILLROOM_TEACHER_URL": "http://127.0.0.1:9/v1",
            **settings,
        }
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, preexec_fn=heed_all)

    def rooms(self) -> dict[str, int]:
        up = home.running(self.folder)
        return {room.room: room.pid for room in home.rooms(up)} if up else {}

    def until(self, look: Callable[[], T | None], seconds: float = 30.0) -> T:
        """What `look` returns as soon as it is something."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := look():
                    return found
            except httpx.TransportError:
                pass
            assert time.monotonic() < end, self.out.read_text()
            time.sleep(0.1)

    def until_both_answer(self) -> dict[str, int]:
        self.until(lambda: httpx.get(f"{self.admin_url}/healthz").status_code == 200 or None)
        self.until(lambda: httpx.get(f"{self.proxy_url}/healthz").status_code == 200 or None)
        rooms = self.rooms()
        assert set(rooms) == {"proxy", "admin"}
        return rooms


@contextmanager
def running(folder: Path, ports: tuple[int, int], command: list[str] = UP, **settings: str) -> Iterator[Up]:
    up = Up(folder, *ports, command, **settings)
    try:
        yield up
    finally:
        up.process.kill()
        up.process.wait()


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


def heed_all() -> None:
    """As from a terminal: a shell that runs the tests in the background has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def new_token(folder: Path) -> str:
    command = [sys.executable, "-m", "admin.cli", "token", "new", "--label", "tests"]
    environment = {**os.environ, "STILLROOM_HOME": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def gone(*pids: int) -> bool | None:
    alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    return not alive or None


def test_everything_starts_survives_a_killed_room_and_stops_cleanly(tmp_path: Path, ports: tuple[int, int]) -> None:
    with running(tmp_path / "home", ports) as up:
        rooms = up.until_both_answer()
        assert up.folder.stat().st_mode & 0o777 == 0o700
        output = up.out.read_text()
        assert f"point your client here: {up.proxy_url}/v1" in output
        assert "there is no admin token yet. Make one with `stillroom token new --label NAME`" in output
        token = new_token(up.folder)
        authorized = {"authorization": f"Bearer {token}"}
        assert httpx.get(f"{up.admin_url}/api/tasks", headers=authorized).json()["data"] == []
        assert httpx.get(f"{up.admin_url}/api/tasks").status_code == 401

        os.kill(rooms["admin"], signal.SIGKILL)
        os.kill(rooms["proxy"], signal.SIGKILL)
        up.until(lambda: len(set(up.rooms().values()) - set(rooms.values())) == 2 or None)
        rooms = up.until_both_answer()
        assert "was killed by SIGKILL; started again in 1 s" in up.out.read_text()

        second = subprocess.run(
            UP, env={**os.environ, "STILLROOM_HOME": str(up.folder)}, capture_output=True, text=True, timeout=30, check=False
        )
        assert second.returncode == 1
        assert f"running on {up.folder} already (pid {up.process.pid})" in second.stderr

        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(60) == 0
        assert gone(*rooms.values())
    for log in ("proxy.log", "admin.log"):
        assert token not in (tmp_path / "home" / "logs" / log).read_text()


def test_a_killed_up_takes_its_rooms_with_it_and_the_next_one_works(tmp_path: Path, ports: tuple[int, int]) -> None:
    with running(tmp_path / "home", ports) as first:
        rooms = first.until_both_answer()
        first.process.kill()
        first.process.wait()
        first.until(lambda: gone(*rooms.values()), 5)
    with running(tmp_path / "home", ports) as second:
        again = second.until_both_answer()
        assert not set(again.values()) & set(rooms.values())
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(60) == 0
        assert gone(*again.values())


def test_on_a_terminal_the_first_start_shows_a_token_and_later_ones_do_not(tmp_path: Path, ports: tuple[int, int]) -> None:
    shown = []
    for _ in range(2):
        ours, theirs = pty.openpty()
        environment = {**os.environ, "STILLROOM_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
        environment |= {"STILLROOM_PROXY_PORT": str(ports[0]), "STILLROOM_ADMIN_PORT": str(ports[1])}
        with subprocess.Popen([*UP, "--without", "proxy,distill,serving,admin"], stdout=theirs, env=environment) as up:
            os.close(theirs)
            text = b""
            while b"point your client here" not in text:
                text += os.read(ours, 10_000)
            up.terminate()
        os.close(ours)
        shown.append(len(re.findall(rb"stillroom-admin-\S{40,}", text)))
    assert shown == [1, 0]


def test_up_under_nohup_outlives_its_terminal(tmp_path: Path, ports: tuple[int, int]) -> None:
    with running(tmp_path / "home", ports, ["nohup", *UP, "--without", "proxy,distill,serving,admin"]) as up:
        up.until(lambda: "point your client here" in up.out.read_text() or None)
        time.sleep(0.5)
        up.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert up.process.poll() is None
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(60) == 0


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path, ports: tuple[int, int]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports[1]))
        listener.listen()
        with running(tmp_path / "home", ports) as up:
            assert up.process.wait(30) == 1
            assert f"Something listens on 127.0.0.1:{ports[1]} already: stop it, or set STILLROOM_ADMIN_PORT" in up.out.read_text()
            assert up.rooms() == {}


def test_neither_a_missing_extra_nor_a_database_that_is_away_keeps_the_proxy_from_answering(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    away = "postgresql://u:sk-secret@127.0.0.1:1/x"
    with running(tmp_path / "home", ports, PLAIN, STILLROOM_DATABASE_URL=away) as up:
        up.until(lambda: httpx.get(f"{up.proxy_url}/healthz").status_code == 200 or None)
        output = up.out.read_text()
        assert "WARNING: The database postgresql+psycopg://u:***@127.0.0.1:1/x does not answer" in output
        assert "sk-secret" not in output
        assert "distill is left out. torch, apscheduler not installed; in the checkout: make setup" in output
        assert "serving is left out. vLLM not installed; in the checkout: make setup" in output
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(60) == 0
