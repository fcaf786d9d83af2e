"""How many requests a minute a key may make, counted in one small file by all worker processes of this machine together."""

import fcntl
import logging
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("stillroom.proxy")

MINUTE = 60_000_000_000  # nanoseconds
MOST = 1_000_000  # requests a minute that can be told apart
_SLOT = struct.Struct("=24sq")  # the beginning of a key's SHA-256, and when its next request is due
_DUE = struct.Struct("=q")
_BUCKET = 64 * _SLOT.size  # a key has its place in the bucket that the last byte of its SHA-256 names
_SIZE = 256 * _BUCKET  # 512 KiB


class Limits:
    """Requests a minute, by the generic cell rate algorithm (ITU-T Recommendation I.371, 03/2004, annex A.1: virtual scheduling).

    With N a minute, requests are due T = 1 minute / N apart, and may come earlier by up to N - 1 such steps: N at once if there
    were none for a minute, and in any t seconds at most N + t/T. One number a key is the whole state: when its next request is due.
    A place whose request is due says as much as an empty one, so places are taken over without loss; with more than 64 keys of a
    bucket busy in the same minute the least busy one begins anew.

    The clock is the machine's since it was started; what a file from before a restart says is worth a minute's requests at most.
    """

    def __init__(self, folder: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._folder = folder
        self._clock = clock
        self._lock: int | None = None  # the file's descriptor
        self._map: mmap.mmap | None = None

    def take(self, digest: bytes, per_minute: int) -> float:
        """Count a request of the key with this SHA-256. 0.0: it may pass; else the seconds until one may, and it is not counted."""
        places = self._map if self._map is not None else self._open()
        bucket = digest[-1] * _BUCKET
        if self._lock is not None:
            fcntl.lockf(self._lock, fcntl.LOCK_EX, _BUCKET, bucket)
        try:
            now = self._clock()
            place = _find(places, bucket, digest[:24], now)
            due = _DUE.unpack_from(places, place + 24)[0]
            due = due if now < due <= now + MINUTE else now
            step = MINUTE // min(per_minute, MOST)
            early = due - step * (per_minute - 1) - now
            if early > 0:
                return early / 1e9
            _SLOT.pack_into(places, place, digest[:24], due + step)
            return 0.0
        finally:
            if self._lock is not None:
                fcntl.lockf(self._lock, fcntl.LOCK_UN, _BUCKET, bucket)

    def _open(self) -> mmap.mmap:
        """The file, or memory of this process alone where there can be none."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._folder / "limits.bin", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(file, 0, _SIZE)  # a page that a full disk has no room for would end the process when it is written
            self._map, self._lock = mmap.mmap(file, _SIZE), file
        except OSError as error:
            log.warning("%s/limits.bin cannot be used, each worker limits for itself: %s", self._folder, error.strerror)
            self._map = mmap.mmap(-1, _SIZE)
        return self._map


def _find(places: mmap.mmap, bucket: int, name: bytes, now: int) -> int:
    """The key's place, or the one to take: the first that is free, else the least busy."""
    found = places.find(name, bucket, bucket + _BUCKET)
    if found >= 0:
        return found
    dues = [due if now < due <= now + MINUTE else 0 for _, due in _SLOT.iter_unpack(places[bucket : bucket + _BUCKET])]
    return bucket + dues.index(min(dues)) * _SLOT.size
