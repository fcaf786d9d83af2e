"""The reading end of one spool folder: which exchanges are in it and not yet in the database."""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

from proxy import spool
from proxy.spool import Folder, Record

log = logging.getLogger("stillroom.proxy")

BATCH_EXCHANGES = 500
BATCH_BYTES = 8_000_000
KEPT_BYTES = 32_000_000  # of beginnings that are kept in memory until their ends come; the others are read again
STOPPED = "the proxy was stopped during this exchange"


@dataclass(frozen=True)
class Logged:
    """One exchange as the spool has it."""

    begin: Record
    end: Record | None
    why: str = ""  #: why there is no end


@dataclass(frozen=True)
class _Begun:
    path: Path
    offset: int
    record: Record | None


class Journal:
    """Hands out exchanges in batches and deletes segments of which nothing is needed any more.

    While the folder's process lives its last segment is still written to. When it is dead, what has no end will never have one.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.exhausted = False  #: read to the end, and nobody appends
        self._offsets: dict[Path, int] = {}
        self._read: set[Path] = set()  # closed for good, and read to the end
        self._begun: dict[str, _Begun] = {}
        self._kept = 0
        self._batch: list[Logged] = []

    @property
    def waiting(self) -> int:
        """Exchanges that have been read and are not stored: those that are going on among them."""
        return len(self._begun) + len(self._batch)

    @property
    def waiting_since(self) -> float | None:
        """When the oldest exchange of the batch that is not stored yet began, as seconds since 1970."""
        return min((float(logged.begin.meta["at"]) for logged in self._batch), default=None)

    def next(self) -> list[Logged]:
        """A batch that is not stored yet: the same one again until `done` is called. Empty if there is none. Raises OSError."""
        if self._batch:
            return self._batch
        dead = self.folder.take_over()  # before reading: what is written until then is read
        if self._fill(dead) and dead:
            self._batch += [Logged(self._recall(begun), None, STOPPED) for begun in self._begun.values()]
            self._begun.clear()
            self.exhausted = True
        return self._batch

    def done(self) -> None:
        """The batch is in the database."""
        self._batch = []
        needed = {begun.path for begun in self._begun.values()}
        for path in self._read - needed:
            self._read.remove(path)
            self._offsets.pop(path, None)
            with contextlib.suppress(FileNotFoundError):  # somebody has tidied up
                path.unlink()

    def _fill(self, dead: bool) -> bool:
        """Read on until the batch is full; True if there is no more to read."""
        size = 0
        segments = self.folder.segments()
        for path in segments:
            if path in self._read:
                continue
            start = self._offsets.get(path, 0)
            for record, offset in spool.read(path, start):
                self._take(path, start, record)
                start = self._offsets[path] = offset
                size += len(record.body)
                if len(self._batch) >= BATCH_EXCHANGES or (self._batch and size >= BATCH_BYTES):
                    return False
            if not dead and path == segments[-1]:
                break
            self._read.add(path)
            torn = path.stat().st_size - start
            if torn:
                log.warning("the last %d bytes of %s are no whole record", torn, path.name)
        return True

    def _take(self, path: Path, offset: int, record: Record) -> None:
        id = record.meta["id"]
        if record.meta["kind"] == "begin":
            keep = self._kept + len(record.body) <= KEPT_BYTES
            self._kept += len(record.body) if keep else 0
            self._begun[id] = _Begun(path, offset, record if keep else None)
        elif id in self._begun:  # else it was stored before a crash, and its beginning is deleted
            self._batch.append(Logged(self._recall(self._begun.pop(id)), record))

    def _recall(self, begun: _Begun) -> Record:
        if begun.record is not None:
            self._kept -= len(begun.record.body)
            return begun.record
        return next(spool.read(begun.path, begun.offset))[0]
