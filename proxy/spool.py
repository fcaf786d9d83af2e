"""The spool: where a capture is safe before its answer is acknowledged. Only files; the database comes later.

    spool/{process}/lock           held by flock as long as the process lives
    spool/{process}/00000001.seg   frames, only ever appended to

A frame is three little-endian u32 (length of meta, length of body, CRC-32 of both), then meta (JSON), then body (raw bytes).
What the kernel has taken survives kill -9; it does not survive the loss of power.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

log = logging.getLogger("stillroom.proxy")

FRAME = struct.Struct("<III")


class NotKept(Exception):
    """The spool is full, or its disk is."""


@dataclass(frozen=True)
class Record:
    """One frame."""

    meta: dict[str, Any]
    body: bytes


class Folder:
    """One process's part of the spool, locked by whoever holds this object: its process, or who took it over."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, root: Path) -> "Folder":
        """A new one for this process. Raises OSError."""
        name = f"{os.getpid()}-{time.time_ns()}"
        hidden = root / f".{name}"  # until it is locked, nobody may take it over
        for made in (root.parent, root):  # the home folder is not for others either
            made.mkdir(parents=True, mode=0o700, exist_ok=True)
        hidden.mkdir(mode=0o700)
        lock = os.open(hidden / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return cls(hidden.rename(root / name), lock)

    @classmethod
    def take_over(cls, root: Path, told: set[Path]) -> "list[Folder]":
        """Those whose processes are dead. One that cannot be opened is left alone; the log says so unless it is in `told`."""
        taken = []
        for path in sorted(p for p in root.glob("[!.]*") if p.is_dir()):
            try:
                lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:  # another process has just finished with it
                continue
            except OSError as error:
                if path not in told:
                    log.error("%s cannot be opened, and what is in it is not stored: %s", path, error.strerror)
                told.add(path)
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            taken.append(cls(path, lock))
        return taken

    def segments(self) -> list[Path]:
        """Its segments, oldest first."""
        return sorted(self.path.glob("*.seg"))

    def remove(self) -> None:
        """Delete it, with all that is in it, and let go."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


class Spool:
    """The writing end of this process's folder. Appends from the event loop, is rotated and counted from the drainer's thread."""

    def __init__(self, folder: Folder, *, max_bytes: int, segment_bytes: int) -> None:
        self.folder = folder
        self.uncaptured = 0  #: exchanges that were answered and not kept
        self.bytes = 0  #: appended and not yet deleted
        self.beside = 0  #: bytes of the spool that are not this process's, as the drainer says: they count towards its limit
        self.active: Path | None = None  #: the segment that is appended to
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._fd = -1
        self._size = 0
        self._number = 0
        self._appended = 0.0
        self._complained = float("-inf")
        self._abandoned: deque[str] = deque()

    def append(self, meta: dict[str, Any], body: bytes, *, reserve: bool = False) -> None:
        """Write one frame; when this returns it survives the process. Raises NotKept, and nothing has been written then.

        With `reserve` a spool that is over its limit still takes it: an exchange that has begun may end.
        """
        head = orjson.dumps(meta)
        parts = (FRAME.pack(len(head), len(body), zlib.crc32(body, zlib.crc32(head))), head, body)
        size = FRAME.size + len(head) + len(body)
        with self._lock:
            held = self.bytes + self.beside
            if held + size > self._max_bytes and not reserve:
                raise NotKept(f"the spool holds {held:,} bytes (STILLROOM_SPOOL_MAX_BYTES is {self._max_bytes:,})")
            try:
                if self.active is None or self._size >= self._segment_bytes:
                    self._open_next()
                written = os.writev(self._fd, parts)
                if written != size:
                    self._undo()
                    raise NotKept(f"the disk took {written} of {size} bytes")
            except OSError as error:
                raise NotKept(f"the spool cannot be written: {error.strerror}") from error
            self._size += size
            self.bytes += size
            self._appended = time.monotonic()

    def rotate(self, idle: float = 0.0) -> None:
        """Let the next frame go into a new segment, so that this one can be deleted; if it is `idle` seconds since the last."""
        with self._lock:
            if time.monotonic() - self._appended >= idle:
                self._close()

    def abandon(self, exchange: str) -> None:
        """The end of an exchange that has begun could not be appended."""
        self._abandoned.append(exchange)

    def abandoned(self) -> Iterator[str]:
        """Ids given to `abandon` since the last call."""
        while self._abandoned:
            yield self._abandoned.popleft()

    def deleted(self, size: int) -> None:
        """So many bytes are gone from the folder."""
        with self._lock:
            self.bytes -= size

    def not_kept(self, why: NotKept) -> None:
        """Count an exchange that is answered without being captured; tell the log at most once a minute."""
        self.uncaptured += 1
        if time.monotonic() - self._complained > 60:
            self._complained = time.monotonic()
            log.error("serving without capturing, %d so far: %s", self.uncaptured, why)

    def _open_next(self) -> None:
        self._close()
        path = self.folder.path / f"{self._number + 1:08d}.seg"
        self.active = path  # before it exists: a reader must not take it for one that is done with
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            self.active = None
            raise
        self._number, self._size = self._number + 1, 0

    def _undo(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._close()  # a torn frame does no harm at a segment's end
            raise

    def _close(self) -> None:
        if self.active is not None:
            os.close(self._fd)
        self.active = None


def weigh(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if there is none."""
    total = 0
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            total += path.stat().st_size
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
