"""A proxy as its processes: started, killed, stopped, watched from outside."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]


class Proxy:
    """`python -m proxy --workers N` on one port, as often as it is started. Its log is in a file."""

    def __init__(
        self, home: Path, teacher: str, *, workers: int = 3, database: str | None = None, log: Path | None = None, **settings: Any
    ) -> None:
        """`settings` are STILLROOM_* variables, in lower case."""
        self.home, self.spool = home, home / "spool"
        self.port = _free_port()
        self.workers_wanted = workers
        self.log = log or home.parent / "proxy.log"
        wiring = {"home": home, "proxy_port": self.port, "teacher_url": teacher, "database_url": database, **settings}
        named = {f"STILLROOM_{name.upper()}": str(value) for name, value in wiring.items() if value is not None}
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **named}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def launch(self, *, path: Path | None = None) -> None:
        """Start it, and do not wait. `path`: a folder whose modules its processes find first."""
        environment = self._environment
        if path is not None:
            environment = {**environment, "PYTHONPATH": f"{path}:{environment['PYTHONPATH']}"}
        command = [sys.executable, "-m", "proxy", "--workers", str(self.workers_wanted)]
        # through a pipe: its processes may write no file at all by then
        self._child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
        threading.Thread(target=self._copy_log, args=(self._child.stdout,), daemon=True).start()

    async def start(self, *, path: Path | None = None) -> None:
        """Start it, again and again as a supervisor would, until all its workers serve."""
        self.launch(path=path)
        async with asyncio.timeout(60):
            while len(self.serving()) < self.workers_wanted:
                if not self.alive:  # the port is not free yet: workers of the one before are dying
                    self.launch(path=path)
                await asyncio.sleep(0.05)

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def workers(self) -> list[int]:
        """The process ids of its workers, those that start included."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children()]
        except psutil.NoSuchProcess:
            return []

    def serving(self) -> list[int]:
        """Those workers that have a spool folder already: they accept connections now, or in a moment."""
        have = {int(match[1]) for path in self.folders() if (match := re.match(r"(\d+)-", path.name))}
        return [pid for pid in self.workers() if pid in have]

    def folders(self) -> list[Path]:
        """The spool's folders, of workers that live and of dead ones."""
        return [path for path in self.spool.glob("[!.]*-*") if path.is_dir()]

    def empty(self) -> bool:
        """Whether the drainer has taken all there is."""
        return not any(True for folder in self.folders() for _ in folder.glob("*.seg"))

    async def drained(self, seconds: float = 120.0) -> None:
        """Wait until no segment with anything in it is left."""
        async with asyncio.timeout(seconds):
            while any(path.stat().st_size for path in _segments(self.folders())):
                await asyncio.sleep(0.1)

    def kill(self, pid: int | None = None) -> None:
        """SIGKILL a worker, or the parent, with which the workers die."""
        if pid is not None and pid != self.pid:
            os.kill(pid, signal.SIGKILL)
            return
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    async def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM; its exit code, or SIGKILL's after so long."""
        assert self._child is not None
        self._child.terminate()
        try:
            async with asyncio.timeout(seconds):
                while self._child.poll() is None:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self.kill()
        return int(self._child.returncode)

    def _copy_log(self, lines: IO[bytes]) -> None:
        with lines, self.log.open("ab", buffering=0) as out:
            for line in lines:
                out.write(line)

    def ready(self) -> dict[str, Any]:
        """What one of the workers says of itself."""
        return dict(httpx.get(f"{self.url}/readyz", timeout=5).json())

    def metric(self, name: str) -> float:
        """The sum over all its workers."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def _segments(folders: list[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.glob("*.seg") if path.exists()]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
