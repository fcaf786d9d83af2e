"""The drainer: a thread that moves ended exchanges from the spool into the database, each exactly once."""

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from proxy import locks, news
from proxy.insert import Writer
from proxy.journal import Journal, Logged
from proxy.metrics import Counters
from proxy.spool import Folder, weigh
from store import migrate
from store.session import Database

log = logging.getLogger("stillroom.proxy")

RETRY = 1.0  # seconds before the database is tried again
BATCHES = 20  # of a folder in one turn, so that the others have theirs


class Drainer(threading.Thread):
    """Stores what is in the folders of all workers, living and dead. While the database is away it waits, and nothing is lost.

    Takes the processor only when the requests leave it: its thread has a lower priority.
    """

    def __init__(
        self,
        db: Database,
        root: Path,
        writer: Writer | None = None,
        counters: Counters | None = None,
        *,
        pause: float = 0.2,
        nice: int = 0,
    ) -> None:
        """`pause`: seconds between two looks at the spool; `nice`: added to the process's own priority.

        Raises OSError if the spool cannot be made.
        """
        super().__init__(name="drainer", daemon=True)
        for made in (root.parent, root):
            made.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.database = "not tried yet"  #: "ok", or why it cannot be written
        self.rejected = 0  #: exchanges that cannot be stored, whatever the database does
        self._db = db
        self._counters = counters or Counters()
        self._writer = writer or Writer(db)
        self._root = root
        self._pause = pause
        self._nice = nice
        self._journals: dict[Path, Journal] = {}
        self._told: set[Path] = set()  # folders that cannot be read, of which the log has told
        self._migrated = False
        self._halt = threading.Event()
        self._lock: int | None = None
        self._published: dict[str, Any] = {}

    def run(self) -> None:
        if self._nice:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        pause = 0.0
        while not self._halt.wait(pause):
            pause = self._pause if self.turn() else RETRY
        while self.turn() and any(journal.folder.take_over() for journal in self._journals.values()):
            pass  # one turn takes at most so many batches
        self.release()

    def release(self) -> None:
        """Let another drainer have the spool."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def stop(self, seconds: float) -> None:
        """Store what there is, for at most so long; what is left stays in the spool, and is stored at the next start."""
        self._halt.set()
        self.join(seconds)
        if any(folder.segments() for folder in Folder.all(self._root)):
            log.warning("stopped with captures in the spool; they are stored at the next start (database: %s)", self.database)

    def turn(self) -> bool:
        """Store all there is to store. False if the database or the disk would not let it; then it is tried again."""
        try:
            if not self._only():
                return True
            self._look()
            self._prepare()
            for journal in [*self._journals.values()]:
                self._drain(journal)
        except Exception as error:  # noqa: BLE001 - whatever it was: the spool still has everything, and the thread must live
            self._tell(_brief(error))
            self._publish()
            return False
        self._tell("ok")
        self._publish()
        return True

    def _only(self) -> bool:
        """Whether this is the spool's one drainer; another takes over when that one's process has ended."""
        if self._lock is None:
            self._lock = locks.take(self._root / "lock", make=True)
        return self._lock is not None

    def _look(self) -> None:
        for folder in Folder.all(self._root):
            if folder.path not in self._journals:
                self._journals[folder.path] = Journal(folder)

    def _prepare(self) -> None:
        if not self._migrated:
            migrate.upgrade(self._db)
            self._migrated = True

    def _drain(self, journal: Journal) -> None:
        """One that cannot be read keeps nobody else's captures waiting."""
        path = journal.folder.path
        try:
            for _ in range(BATCHES):
                if not (batch := journal.next()):
                    break
                self._store(batch)
                journal.done()
            journal.done()
        except (SQLAlchemyError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - it stays where it is, and is tried again
            self._cannot_read(path, _brief(error))
            return
        if journal.exhausted:
            journal.folder.remove()
            del self._journals[path]

    def _cannot_read(self, path: Path, why: str) -> None:
        if path not in self._told:
            log.error("%s cannot be read, and what is in it is not stored: %s", path, why)
        self._told.add(path)

    def _store(self, batch: Sequence[Logged]) -> None:
        try:
            self._writer.insert(batch)
        except Exception as error:
            if not _is_the_rows(error):
                raise
            # one of them is at fault: find it, and let the others through
            log.warning("storing %d captures one by one: %s", len(batch), _brief(error))
            for logged in batch:
                self._store_alone(logged)

    def _store_alone(self, logged: Logged) -> None:
        try:
            self._writer.insert([logged])
        except Exception as error:
            if not _is_the_rows(error):
                raise
            _set_aside(self._root / "rejected", logged)  # it must not keep the others waiting for ever
            self.rejected += 1
            log.error("capture %s cannot be stored and is set aside in spool/rejected: %s", logged.begin.meta["id"], _brief(error))

    def _tell(self, state: str) -> None:
        if state != self.database:
            log.log(logging.INFO if state == "ok" else logging.WARNING, "database: %s", state)
            self.database = state

    def _publish(self) -> None:
        since = [at for journal in self._journals.values() if (at := journal.waiting_since) is not None]
        waiting = sum(journal.waiting for journal in self._journals.values())
        self._counters.spool(waiting, weigh(self._root), min(since, default=None))
        self._counters.database(self.database == "ok")
        state = {"database": self.database, "rejected": self.rejected}
        if state != self._published:
            with contextlib.suppress(OSError):  # a full disk: the next turn tries again
                news.write(self._root, state)
                self._published = state


def _is_the_rows(error: Exception) -> bool:
    """Whether the row itself is at fault, and not a database that takes no row now: it is away, read-only, without its tables."""
    if isinstance(error, DBAPIError):
        return isinstance(error, (DataError, IntegrityError))
    return isinstance(error, StatementError) or not isinstance(error, (SQLAlchemyError, OSError, MemoryError))


def _set_aside(folder: Path, logged: Logged) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    file = os.open(folder / f"{logged.begin.meta['id']}.json", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(file, "wb") as out:
        for record in filter(None, (logged.begin, logged.end)):
            out.write(orjson.dumps({**record.meta, "body": record.body.decode("latin-1")}) + b"\n")


def _brief(error: Exception) -> str:
    """What happened, without the statement's parameters: they are people's data."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else 'no text'}"[:300]
