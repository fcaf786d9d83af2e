"""The database and its sessions. The only place that commits."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry
from sqlmodel import Session

_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
BUSY_SECONDS = 30  # how long a writer waits for SQLite's one write lock
# libpq's: seconds, and one in milliseconds. A host that vanishes without a word holds a thread for some ten seconds, not for hours.
POSTGRES = {
    "connect_timeout": 5, "keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}  # fmt: skip


class Database:
    """One database, many short sessions. Safe to share between threads; make a new one after a fork."""

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        file = _file(parsed) if self.sqlite else None
        if file is not None:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # what clients say is kept in it
        connect_args: dict[str, Any] = {"timeout": BUSY_SECONDS} if self.sqlite else POSTGRES
        self.engine = sa.create_engine(
            url,
            pool_pre_ping=not self.sqlite,
            connect_args=connect_args,
            hide_parameters=True,  # an error's text must not carry people's data into logs
            json_serializer=_to_json,
        )
        if file is not None:
            sa.event.listen(self.engine, "do_connect", lambda *_: _make_private(file))
        if self.sqlite:
            sa.event.listen(self.engine, "connect", _configure_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction that may write: committed at the end, rolled back if the block raises."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; on SQLite it never waits for a writer. Always rolled back."""
        connection = self.engine.connect().execution_options(stillroom_read=True)
        with connection, Session(connection, expire_on_commit=False) as session:
            yield session  # closing rolls back, and leaves what was read readable

    def close(self) -> None:
        self.engine.dispose()


def _to_json(value: Any) -> str:
    """JSON as PostgreSQL takes it: NUL characters, which it cannot store, are left out."""
    return _NUL.sub(r"\1", orjson.dumps(value).decode())


def _file(url: sa.URL) -> Path | None:
    return Path(url.database) if url.database and url.database != ":memory:" and "uri" not in url.query else None


def _make_private(file: Path) -> None:
    """SQLite would make it for everybody to read; its -wal and -shm get the mode that it has."""
    with contextlib.suppress(OSError):  # it is there; or SQLite says better what is wrong
        file.touch(mode=0o600, exist_ok=False)


def _configure_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # SQLAlchemy's BEGIN is emitted in _begin_sqlite; the driver must not add its own.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that begins by reading and then writes fails at once when another wrote in between:
    # take the write lock at the start, and wait for it there.
    reading = connection.get_execution_options().get("stillroom_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
