"""The spool: where a capture is safe before its answer is acknowledged. Only files; the database comes later.

    spool/{process}/lock           held by flock as long as the process lives
    spool/{process}/00000001.seg   frames, only ever appended to; all but the last are closed for good

A frame is three little-endian u32 (length of meta, length of body, CRC-32 of both), then meta (JSON), then body (raw bytes).
What is appended within one turn of the event loop is written, and with `disk` durability flushed, in one go.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from proxy import locks
from proxy.metrics import Counters

log = logging.getLogger("stillroom.proxy")

FRAME = struct.Struct("<III")
NO_ROOM = "the spool had no room for the answer"
_MOST_PARTS = 1000  # of one writev: IOV_MAX is 1024
_IDLE = 1.0  # seconds after which a segment that nobody has appended to is closed, so that it can be deleted


class Durability(StrEnum):
    """What a capture that has been acknowledged survives."""

    PROCESS = "process"  #: kill -9 of any process: the kernel has it
    DISK = "disk"  #: loss of power too: the disk has it


class NotKept(Exception):
    """The spool is full, or its disk is."""


Then = Callable[[NotKept | None], None]  #: called once: None when the record is durable, or why it is not kept


def nobody(_error: NotKept | None) -> None:
    """A `Then` for what nobody waits for."""


@dataclass(frozen=True)
class Record:
    """One frame."""

    meta: dict[str, Any]
    body: bytes


class Folder:
    """One process's part of the spool."""

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, root: Path) -> "Folder":
        """A new one for this process, locked. Raises OSError."""
        name = f"{os.getpid()}-{time.time_ns()}"
        hidden = root / f".{name}"  # until it is locked, nobody may take it over
        for made in (root.parent, root):  # the home folder is not for others either
            made.mkdir(parents=True, mode=0o700, exist_ok=True)
        hidden.mkdir(mode=0o700)
        lock = locks.take(hidden / "lock", make=True)
        return cls(hidden.rename(root / name), lock)

    @classmethod
    def all(cls, root: Path) -> "list[Folder]":
        """All there are, oldest first, none of them locked by this object."""
        return [cls(path) for path in sorted(root.glob("[!.]*-*")) if path.is_dir()]

    def take_over(self) -> bool:
        """Lock it if its process is dead; True if this object has it locked. Raises OSError if it cannot be opened."""
        if self._lock is None:
            self._lock = locks.take(self.path / "lock")
        return self._lock is not None

    def segments(self) -> list[Path]:
        """Its segments, oldest first."""
        return sorted(self.path.glob("*.seg"))

    def release(self) -> None:
        """Let go of the lock: what is in it is for others to finish."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def remove(self) -> None:
        """Delete it, with all that is in it, and let go."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()


class Spool:
    """The writing end of this process's folder. For one thread: the event loop's, if there is one."""

    def __init__(
        self,
        folder: Folder,
        *,
        max_bytes: int,
        segment_bytes: int,
        durability: Durability = Durability.PROCESS,
        grouped: bool = True,
        counters: Counters | None = None,
    ) -> None:
        """`grouped`: write at the end of the event loop's turn; else (and without a loop) on each append."""
        self._counters = counters or Counters()
        self.folder = folder
        self.uncaptured = 0  #: exchanges that were answered and not kept
        self.full: str | None = None  #: why the last record was not kept; None if it was
        self.held = weigh(folder.path.parent)  #: bytes of the whole spool: counted in `tick`, and what was appended since
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._durability = durability
        self._grouped = grouped
        self._fd = -1
        self._size = 0
        self._number = 0
        self._appended = 0.0
        self._complained = float("-inf")
        self._abandoned: deque[str] = deque()
        self._parts: list[bytes] = []
        self._thens: list[Then] = []
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._syncer: ThreadPoolExecutor | None = None
        self._syncing = False
        self._unsynced: list[Then] = []
        self._behind: list[int] = []  # what has to be flushed with them: segments that are closed, folders with new names in them
        if durability == Durability.DISK:
            self._behind = [_folder(made) for made in (folder.path.parent, folder.path.parent.parent)]

    def append(self, meta: dict[str, Any], body: bytes, then: Then, *, reserve: bool = False) -> None:
        """Write one frame, whole or not at all, and call `then`.

        With `reserve` a spool that is over its limit still takes it: an exchange that has begun may end.
        """
        head = orjson.dumps(meta)
        size = FRAME.size + len(head) + len(body)
        if self.held + size > self._max_bytes and not reserve:
            then(self._fail(f"the spool holds {self.held:,} bytes (STILLROOM_SPOOL_MAX_BYTES is {self._max_bytes:,})"))
            return
        self.held += size
        self._parts += (FRAME.pack(len(head), len(body), zlib.crc32(body, zlib.crc32(head))) + head, body)
        self._thens.append(then)
        if not self._grouped:
            self.flush()
        elif not self._scheduled:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what has been appended since the last time."""
        self._scheduled = False
        parts, self._parts = self._parts, []
        thens, self._thens = self._thens, []
        error = self._write(parts) if parts else None
        if error is None and self._durability == Durability.DISK:
            self._unsynced += thens
            self._sync()
            return
        for then in thens:
            then(error)

    def tick(self) -> None:
        """Once a second: weigh the spool, let go of an idle segment, end the exchanges whose ends found no room."""
        self.held = weigh(self.folder.path.parent) + sum(map(len, self._parts))
        if self._size and time.monotonic() - self._appended >= _IDLE:
            with contextlib.suppress(OSError):  # it goes on where it is
                self._open_next()
        for _ in range(len(self._abandoned)):
            self._end_abandoned(self._abandoned.popleft())

    def abandon(self, exchange: str) -> None:
        """The end of an exchange that has begun could not be appended: it will be, without the answer, when there is room."""
        self._abandoned.append(exchange)

    def not_kept(self, why: NotKept) -> None:
        """Count an exchange that is answered without being captured; tell the log at most once a minute."""
        self.uncaptured += 1
        self._counters.uncaptured()
        if time.monotonic() - self._complained > 60:
            self._complained = time.monotonic()
            log.error("serving without capturing, %d so far: %s", self.uncaptured, why)

    def close(self) -> None:
        """Write what is left and hand the folder over."""
        self.flush()
        if self._syncer is not None:
            self._syncer.shutdown()
        self._close()
        _flushed(self._behind)
        self.folder.release()

    def _fail(self, why: str) -> NotKept:
        self.full = why
        return NotKept(why)

    def _end_abandoned(self, exchange: str) -> None:
        meta = {"kind": "end", "id": exchange, "status": "incomplete", "error": NO_ROOM}
        self.append(meta, b"", lambda error: self._abandoned.append(exchange) if error else None, reserve=True)

    def _write(self, parts: Sequence[bytes]) -> NotKept | None:
        """Everything or nothing."""
        size = sum(map(len, parts))
        try:
            if self._fd < 0 or self._size >= self._segment_bytes:
                self._open_next()
            written = 0
            for start in range(0, len(parts), _MOST_PARTS):
                some = parts[start : start + _MOST_PARTS]
                done = os.writev(self._fd, some)
                written += done
                if done < sum(map(len, some)):
                    break
        except OSError as error:
            self._undo()
            return self._fail(f"the spool cannot be written: {error.strerror}")
        if written != size:
            self._undo()
            return self._fail(f"the disk took {written} of {size} bytes")
        self.full = None
        self._size += size
        self._appended = time.monotonic()
        return None

    def _undo(self) -> None:
        """A torn frame does no harm at a segment's end; within one it would hide what comes behind."""
        if self._fd < 0:
            return
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._close()

    def _sync(self) -> None:
        """Have the disk take what is written; what is appended meanwhile has the next turn."""
        if self._syncing or not self._unsynced:
            return
        thens, self._unsynced = self._unsynced, []
        try:
            fds = [*self._behind, *([os.dup(self._fd)] if self._fd >= 0 else [])]
        except OSError as problem:  # too many open files
            self._synced(thens, problem.strerror)
            return
        self._behind = []
        if self._loop is None:
            self._synced(thens, _flushed(fds))
            return
        self._syncing = True
        self._syncer = self._syncer or ThreadPoolExecutor(1, "spool")
        done = self._loop.run_in_executor(self._syncer, _flushed, fds)
        done.add_done_callback(lambda each: self._synced(thens, each.result()))

    def _synced(self, thens: Sequence[Then], problem: str | None) -> None:
        self._syncing = False
        error = None if problem is None else self._fail(f"the disk did not take what was written: {problem}")
        for then in thens:
            then(error)
        self._sync()

    def _open_next(self) -> None:
        path = self.folder.path / f"{self._number + 1:08d}.seg"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if self._durability == Durability.DISK:  # a file's name is in its folder
                self._behind.append(_folder(self.folder.path))
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._close()
        self._fd, self._number, self._size = fd, self._number + 1, 0

    def _close(self) -> None:
        if self._fd >= 0:
            if self._durability == Durability.DISK:
                self._behind.append(self._fd)
            else:
                os.close(self._fd)
        self._fd = -1


class Waiting:
    """A `then` to wait for: `await kept`. Raises NotKept."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.then: Then = partial(_settle, self._future)

    def __await__(self) -> Generator[Any, None, None]:
        return self._future.__await__()


def _settle(future: "asyncio.Future[None]", error: NotKept | None) -> None:
    if not future.done():
        future.set_exception(error) if error is not None else future.set_result(None)


def _flushed(fds: Sequence[int]) -> str | None:
    """fdatasync, and close; says what went wrong."""
    problem = None
    for fd in fds:
        try:
            os.fdatasync(fd)
        except OSError as error:
            problem = problem or error.strerror or str(error)
        finally:
            os.close(fd)
    return problem


def _folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def weigh(root: Path) -> int:
    """Bytes of the files in the folders of a spool; 0 if there is none."""
    total = 0
    with contextlib.suppress(OSError):
        for folder in os.scandir(root):
            if not folder.is_dir():
                continue
            with contextlib.suppress(OSError):  # deleted meanwhile
                for file in os.scandir(folder):
                    with contextlib.suppress(OSError):
                        total += file.stat().st_size
    return total


def read(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """The whole frames of a segment from `offset` on, each with the offset behind it. Ends before a torn one."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - offset
        file.seek(offset)
        while left >= FRAME.size:
            meta_size, body_size, crc = FRAME.unpack(file.read(FRAME.size))
            size = FRAME.size + meta_size + body_size
            if not meta_size or size > left:  # zeros: a file the disk has made longer than its data
                return
            head, body = file.read(meta_size), file.read(body_size)
            if zlib.crc32(body, zlib.crc32(head)) != crc:
                return
            offset, left = offset + size, left - size
            yield Record(orjson.loads(head), body), offset
