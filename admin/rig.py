"""A teacher and a whole stillroom on free ports, in a folder of their own: for the demo, acceptance tests and benches."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
from sqlmodel import Session, select

from serving.command import free_port
from store import children
from store.session import Database
from store.settings import StoreSettings
from store.states import EngineStatus
from store.tables import Engine

T = TypeVar("T")
KEY = "sk-simulated-teacher"  # the simulated teacher's only key; opens nothing else
STILLROOM = (sys.executable, "-m", "admin.cli")


class NotSeen(Exception):
    """A stage did not show itself; the message says which."""


@dataclass
class Rig:
    """What runs, and how to look at it."""

    home: Path
    db: Database
    base_url: str  #: where clients point, with /v1
    environment: dict[str, str]
    up: subprocess.Popen[bytes]
    teacher: subprocess.Popen[bytes] | None

    def until(self, read: Callable[[Session], T | None], seconds: float, what: str) -> T:
        """The first thing that `read` finds in the database. Raises NotSeen after `seconds`, or when something has died."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self.db.read() as session:
                found = read(session)
            if found is not None:
                return found
            self.check_alive()
            time.sleep(0.2)
        raise NotSeen(f"{what}, within {seconds:.0f} s")

    def check_alive(self) -> None:
        """Raises NotSeen if `stillroom up` has ended or vLLM cannot start."""
        if self.up.poll() is not None:
            raise NotSeen(f"`stillroom up` running; it ended with exit code {self.up.returncode}")
        with self.db.read() as session:
            broken = session.exec(select(Engine).where(Engine.status == EngineStatus.FAILED)).first()
        if broken is not None:
            raise NotSeen(f"vLLM running: {broken.detail}")


@contextmanager
def start(
    home: Path, teacher: Sequence[str] | None, settings: Mapping[str, str], *, key: str | None = None, up: Sequence[str] = ()
) -> Iterator[Rig]:
    """Start `stillroom teacher {teacher}` (None: TEACHER_URL of `settings` is one) and `stillroom up`; gone when the block ends.

    `settings` are STILLROOM_* variables without the prefix, the only ones that hold: what the person's own environment says of a
    database, a vLLM or a teacher is not for this. `key` is the operator's key for the teacher.
    """
    proxy_port, admin_port, teacher_port = (free_port() for _ in range(3))
    home.mkdir(mode=0o700, exist_ok=True, parents=True)
    (home / "logs").mkdir(exist_ok=True)
    environment = {
        "STILLROOM_HOME": str(home),
        "STILLROOM_PROXY_PORT": str(proxy_port),
        "STILLROOM_ADMIN_PORT": str(admin_port),
        **{f"STILLROOM_{name}": value for name, value in settings.items()},
    }
    process = None
    if teacher is not None:
        environment["STILLROOM_TEACHER_URL"] = f"http://127.0.0.1:{teacher_port}/v1"
        process = spawn(["teacher", *teacher, "--port", str(teacher_port)], home / "logs" / "teacher.log")
    if key is not None:
        environment["STILLROOM_TEACHER_KEY"] = key
    running = spawn(["up", *up], home / "logs" / "up.log", environment)
    rig = Rig(
        home=home,
        db=Database(environment.get("STILLROOM_DATABASE_URL") or StoreSettings(home=home, database_url=None).url),
        base_url=f"http://127.0.0.1:{proxy_port}/v1",
        environment=environment,
        up=running,
        teacher=process,
    )
    try:
        wait_for(f"http://127.0.0.1:{proxy_port}/readyz", running)
        if process is not None:
            wait_for(f"http://127.0.0.1:{teacher_port}/v1/models", process)
        yield rig
    finally:
        children.stop(rig.up, grace=60)
        if process is not None:
            children.stop(process, grace=2)
        rig.db.close()


def spawn(arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A `stillroom` command in a process that does not outlive this one, with no STILLROOM_* variables but those given."""
    inherited = {name: "" for name in os.environ if name.startswith("STILLROOM_")}  # empty is as if it were not set
    with log.open("ab") as file:
        return children.spawn(
            [*STILLROOM, *arguments],
            stdout=file,
            stderr=file,
            environment={**inherited, **(environment or {})},
            death_signal=signal.SIGTERM,
        )


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Samples the resident memory of this process and all below it, together; yields a function that gives the peak in GiB."""
    done = threading.Event()
    peak = 0

    def sample() -> None:
        nonlocal peak
        while not done.wait(1.0):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it ended meanwhile
                    continue
            peak = max(peak, total)

    threading.Thread(target=sample, daemon=True).start()
    try:
        yield lambda: round(peak / 2**30, 2)
    finally:
        done.set()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the URL answers, with whatever status. Raises NotSeen after 60 seconds, or when its process has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(url, timeout=2)
            return
        except httpx.TransportError:
            if process.poll() is not None:
                raise NotSeen(f"{url} answering; its process ended with exit code {process.returncode}") from None
            time.sleep(0.2)
    raise NotSeen(f"an answer from {url} within 60 s")
