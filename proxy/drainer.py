"""The drainer: a thread that moves ended exchanges from the spool into the database, each exactly once."""

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from proxy.insert import insert
from proxy.journal import Journal, Logged
from proxy.spool import Folder, Spool, weigh
from store import migrate
from store.session import Database

log = logging.getLogger("stillroom.proxy")

PAUSE = 0.2  # seconds between two looks at the spool
RETRY = 1.0  # seconds before the database is tried again
BATCHES = 50  # of a folder in one turn, so that the others have theirs
TAKE_OVER = 10.0  # seconds between two looks for dead processes' folders


class Drainer(threading.Thread):
    """Stores what is in this process's folder and in dead ones'. While the database is away it waits, and nothing is lost."""

    def __init__(self, db: Database, root: Path, spool: Spool) -> None:
        super().__init__(name="drainer", daemon=True)
        self.database = "not tried yet"  #: "ok", or why it cannot be written
        self.rejected = 0  #: exchanges that cannot be stored, whatever the database does
        self._db = db
        self._root = root
        self._spool = spool
        self._own = Journal(spool.folder, spool)
        self._orphans: list[Journal] = []
        self._told: set[Path] = set()  # folders that cannot be read, of which the log has told
        self._looked = float("-inf")
        self._migrated = False
        self._halt = threading.Event()

    def run(self) -> None:
        pause = 0.0
        while not self._halt.wait(pause):
            pause = PAUSE if self.turn() else RETRY
        self._spool.rotate()
        self.turn()
        if not self._own.folder.segments():
            self._own.folder.remove()

    def stop(self, seconds: float) -> None:
        """Store what there is, for at most so long; what is left stays in the spool, and is stored at the next start."""
        self._halt.set()
        self.join(seconds)
        if self._own.folder.segments():
            log.warning("stopped with captures in the spool that the database did not take: %s", self.database)

    def turn(self) -> bool:
        """Store all there is to store. False if the database or the disk would not let it; then it is tried again."""
        try:
            self._look()
            self._prepare()
            self._drain(self._own)
            self._drain_orphans()
        except Exception as error:  # noqa: BLE001 - whatever it was: the spool still has everything, and the thread must live
            self._tell(_brief(error))
            return False
        self._tell("ok")
        return True

    def _look(self) -> None:
        if time.monotonic() - self._looked > TAKE_OVER:
            self._orphans += [Journal(folder, None) for folder in Folder.take_over(self._root, self._told)]
            self._looked = time.monotonic()
            self._weigh()

    def _weigh(self) -> None:
        self._spool.beside = sum(weigh(path) for path in (self._root / "rejected", *(each.folder.path for each in self._orphans)))

    def _drain_orphans(self) -> None:
        """One that cannot be read keeps nobody else's captures waiting."""
        for journal in list(self._orphans):
            try:
                self._drain(journal)
            except DBAPIError:
                raise
            except Exception as error:  # noqa: BLE001 - it stays where it is, and is tried again
                if journal.folder.path not in self._told:
                    log.error("%s cannot be read, and what is in it is not stored: %s", journal.folder.path, _brief(error))
                self._told.add(journal.folder.path)
            if journal not in self._orphans:
                self._weigh()

    def _prepare(self) -> None:
        if not self._migrated:
            migrate.upgrade(self._db)
            self._migrated = True

    def _drain(self, journal: Journal) -> None:
        for _ in range(BATCHES):
            if not (batch := journal.next()):
                break
            self._store(batch)
            journal.done()
        journal.done()
        if journal.exhausted:
            journal.folder.remove()
            self._orphans.remove(journal)
        elif journal is self._own and journal.idle:
            self._spool.rotate(idle=1.0)

    def _store(self, batch: Sequence[Logged]) -> None:
        try:
            insert(self._db, batch)
        except Exception as error:
            if not _is_the_rows(error):
                raise
            # one of them is at fault: find it, and let the others through
            log.warning("storing %d captures one by one: %s", len(batch), _brief(error))
            for logged in batch:
                self._store_alone(logged)

    def _store_alone(self, logged: Logged) -> None:
        try:
            insert(self._db, [logged])
        except Exception as error:
            if not _is_the_rows(error):
                raise
            self.rejected += 1  # it must not keep the others waiting for ever
            log.error("capture %s cannot be stored and is set aside in spool/rejected: %s", logged.begin.meta["id"], _brief(error))
            _set_aside(self._root / "rejected", logged)

    def _tell(self, state: str) -> None:
        if state != self.database:
            log.log(logging.INFO if state == "ok" else logging.WARNING, "database: %s", state)
            self.database = state


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
