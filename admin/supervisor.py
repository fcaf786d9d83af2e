"""The rooms as supervised processes: started, started again when they die, stopped with everything below them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from store import children

ROOT = Path(__file__).parents[1]  # where this stillroom's packages are
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a dead room is started again; doubled each time
STEADY = 60.0  # seconds after which a room counts as well again
LOG_BYTES = 50_000_000  # a longer log is set aside when its room starts
DRAIN = 42.0  # seconds the proxy has to stop: 30 for requests under way, the rest to bring the spool into the database
GRACE = 15.0  # seconds the others have


def room_command(room: str) -> list[str]:
    """How a room is run. -P: a folder called `proxy` or `store` where the person happens to be is not ours."""
    return [sys.executable, "-P", "-m", room]


def room_environment() -> dict[str, str]:
    """Rooms run the code that this process runs, wherever it came from."""
    rest = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), rest] if rest else [str(ROOT)])}


@dataclass
class Child:
    """A room's process, and when to start it next."""

    room: str
    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  #: monotonic, as `due`
    due: float = 0.0
    pause: float = FIRST_PAUSE
    restarts: int = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def last_line(self) -> str:
        """The end of its log, for a person to glance at."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 2000))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        return lines[-1] if lines else ""


@dataclass
class Supervisor:
    """Keeps children running. Call everything from the main thread: children die when the thread that started them does."""

    children: list[Child]
    say: Callable[[str], None]
    environment: dict[str, str] = field(default_factory=dict)
    stopping: bool = False

    def tick(self) -> None:
        """Start what is due; notice what has died."""
        for child in self.children:
            if child.running:
                continue
            now = time.monotonic()
            if child.process is not None:
                self._died(child, child.process.returncode, now)
            elif now >= child.due:
                self._start(child)

    def stop(self) -> None:
        """The proxy drains before anything else is stopped, so that its students answer to the end."""
        self.stopping = True
        running = [child for child in self.children if child.running]
        first = [child for child in running if child.room == "proxy"]
        for group in (first, [child for child in running if child not in first]):
            if group:
                with ThreadPoolExecutor(len(group)) as pool:
                    list(pool.map(self._stop, group))

    def kill(self) -> None:
        """No more patience."""
        for child in self.children:
            if child.process is not None and child.running:
                children.signal_group(child.process, signal.SIGKILL)

    def _start(self, child: Child) -> None:
        child.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if child.log.exists() and child.log.stat().st_size > LOG_BYTES:
            child.log.replace(child.log.with_suffix(".old.log"))
        with child.log.open("ab") as file:
            child.process = children.spawn(child.command, stdout=file, stderr=file, environment=self.environment)
        child.started = time.monotonic()
        self.say(f"{child.room} started (pid {child.process.pid}), log {child.log}")

    def _died(self, child: Child, code: int, now: float) -> None:
        assert child.process is not None
        children.signal_group(child.process, signal.SIGKILL)  # what it started and left behind
        if now - child.started > STEADY:
            child.pause = FIRST_PAUSE
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self.say(f"{child.room} {how}; started again in {child.pause:.0f} s. Its log ends: {child.last_line()}")
        child.process, child.due = None, now + child.pause
        child.pause, child.restarts = min(child.pause * 2, LONGEST_PAUSE), child.restarts + 1

    def _stop(self, child: Child) -> None:
        assert child.process is not None
        begun = time.monotonic()
        code = children.stop(child.process, DRAIN if child.room == "proxy" else GRACE)
        how = "had to be killed" if code == -signal.SIGKILL else "stopped"
        self.say(f"{child.room} {how} ({time.monotonic() - begun:.1f} s)")
