"""`python -m proxy`: binds the port, keeps its workers alive, and drains what they capture into the database. Until SIGTERM."""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from proxy.base import Base
from proxy.board import FOLDER, Board
from proxy.drainer import Drainer
from proxy.insert import Writer
from proxy.metrics import Counters
from proxy.prices import Prices
from proxy.settings import ProxySettings
from proxy.traces import Tracer
from proxy.worker import DRAIN_SECONDS, configure_logging
from store import teachers
from store.session import Database
from store.settings import load

log = logging.getLogger("stillroom.proxy")

GRACE = DRAIN_SECONDS + 4.0  # seconds for workers to end
FLUSH_SECONDS = 10.0  # for the spool to go into the database then
NICE = 10  # added to the drainer's priority: requests come first
_QUICK = 1.0  # seconds: a worker that ends sooner is started again only after as long


class Workers:
    """The processes that serve: each is started again when it ends, and all end with this process, however it ends."""

    def __init__(self, number: int, listening: socket.socket) -> None:
        self._listening = listening
        self._running: list[subprocess.Popen[bytes]] = []
        self._started: dict[int, float] = {}
        for _ in range(number):
            self._start()

    def check(self) -> None:
        """Start those again that have ended."""
        for child in [*self._running]:
            if child.poll() is None:
                continue
            if time.monotonic() - self._started[child.pid] < _QUICK:
                continue
            self._running.remove(child)
            log.error("worker %d ended with exit code %d and is started again", child.pid, child.returncode)
            self._start()

    def stop(self) -> None:
        """Let them answer what is open; after GRACE seconds they are killed."""
        self._listening.close()
        for child in self._running:
            child.terminate()
        deadline = time.monotonic() + GRACE
        for child in self._running:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d did not end in time and is killed", child.pid)
                child.kill()
                child.wait()

    def _start(self) -> None:
        fd = self._listening.fileno()
        # Its own group: Ctrl-C on a terminal is this process's to pass on. Not its own session: Linux would give each session an
        # equal share of a processor (sched_autogroup), and the drainer's lower priority would not count.
        command = [sys.executable, "-P", "-m", "proxy.worker", str(fd), str(os.getpid())]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[fd], process_group=0)
        self._running.append(child)
        self._started[child.pid] = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m proxy", description=__doc__)
    parser.add_argument("--workers", type=int, help="worker processes; default: STILLROOM_WORKERS, or 1")
    options = parser.parse_args()
    configure_logging()
    settings = load(ProxySettings)
    try:
        listed = teachers.read(settings)
        for entry in listed.entries:
            listed.key(entry)
    except teachers.BadTeachers as error:
        sys.exit(f"Error: {error}")
    halt = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: halt.set())
    listening = _bind(settings.proxy_host, settings.proxy_port)
    host, port = listening.getsockname()[:2]
    db = Database(settings.url)
    counters, tracer = Counters(), Tracer.from_settings()
    writer = Writer(db, Prices(listed.prices), counters, tracer)
    try:
        board = Board(settings.home_path / FOLDER, counters.snapshot)
        drainer = Drainer(db, settings.home_path / "spool", writer, counters, pause=settings.drain_seconds, nice=NICE)
    except OSError as error:
        sys.exit(f"Error: {error.filename or settings.home_path} cannot be used: {error.strerror} (STILLROOM_HOME).")
    workers = Workers(options.workers or settings.workers, listening)
    drainer.start()
    log.info("teachers: %s, home: %s", ", ".join(str(Base(entry.url)) for entry in listed.entries), settings.home_path)
    log.info("running on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    while not halt.wait(0.5):
        workers.check()
        board.publish()
    workers.stop()
    drainer.stop(FLUSH_SECONDS)
    if tracer is not None:
        tracer.close()
    board.close()
    db.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        sys.exit(f"Error: cannot listen on {host}:{port}: {error.strerror} (STILLROOM_PROXY_HOST, STILLROOM_PROXY_PORT).")


if __name__ == "__main__":
    main()
