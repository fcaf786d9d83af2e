"""The reading end of one spool folder: which exchanges are in it and not yet in the database."""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

from proxy import spool
from proxy.spool import Folder, Record, Spool

log = logging.getLogger("stillroom.proxy")

BATCH_EXCHANGES = 200
BATCH_BYTES = 8_000_000
STOPPED = "the proxy was stopped during this exchange"
NO_ROOM = "the spool had no room for the answer"


@dataclass(frozen=True)
class Logged:
    """One exchange as the spool has it."""

    begin: Record
    end: Record | None
    why: str = ""  #: why there is no end


class Journal:
    """Hands out exchanges in batches and deletes segments of which nothing is needed any more."""

    def __init__(self, folder: Folder, writer: Spool | None) -> None:
        """`writer` appends to the folder; None: its process is dead, and what has no end will never have one."""
        self.folder = folder
        self.exhausted = False  #: read to the end, and nobody appends
        self._writer = writer
        self._offsets: dict[Path, int] = {}
        self._read: set[Path] = set()  # sealed, and read to the end
        self._begun: dict[str, tuple[Path, Record]] = {}
        self._abandoned: set[str] = set()
        self._batch: list[Logged] = []

    @property
    def idle(self) -> bool:
        """Nothing is open and nothing waits to be stored."""
        return not self._begun and not self._batch

    def next(self) -> list[Logged]:
        """A batch that is not stored yet: the same one again until `done` is called. Empty if there is none."""
        if self._batch:
            return self._batch
        whole = self._fill()
        if self._writer is not None:
            self._abandoned.update(self._writer.abandoned())
            for id in self._abandoned & self._begun.keys():
                self._abandoned.remove(id)
                self._batch.append(Logged(self._begun.pop(id)[1], None, NO_ROOM))
        elif whole:
            self._batch += [Logged(begin, None, STOPPED) for _, begin in self._begun.values()]
            self._begun.clear()
            self.exhausted = True
        return self._batch

    def done(self) -> None:
        """The batch is in the database."""
        self._batch = []
        needed = {path for path, _ in self._begun.values()}
        for path in self._read - needed:
            self._read.remove(path)
            self._offsets.pop(path, None)
            with contextlib.suppress(FileNotFoundError):  # somebody has tidied up
                size = path.stat().st_size
                path.unlink()
                if self._writer is not None:
                    self._writer.deleted(size)

    def _fill(self) -> bool:
        """Read on until the batch is full; True if there is no more to read."""
        size = 0
        for path in self.folder.segments():
            if path in self._read:
                continue
            sealed = self._writer is None or path != self._writer.active  # before reading: it may be rotated meanwhile
            for record, offset in spool.read(path, self._offsets.get(path, 0)):
                self._offsets[path] = offset
                self._take(path, record)
                size += len(record.body)
                if len(self._batch) >= BATCH_EXCHANGES or (self._batch and size >= BATCH_BYTES):
                    return False
            if not sealed:
                break
            self._read.add(path)
            torn = path.stat().st_size - self._offsets.get(path, 0)
            if torn:
                log.warning("the last %d bytes of %s are no whole record", torn, path.name)
        return True

    def _take(self, path: Path, record: Record) -> None:
        id = record.meta["id"]
        if record.meta["kind"] == "begin":
            self._begun[id] = (path, record)
        elif id in self._begun:  # else it was stored before a crash, and its beginning is deleted
            self._batch.append(Logged(self._begun.pop(id)[1], record))
