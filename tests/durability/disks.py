"""Disks that are full when a test wants them to be."""

import errno
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.durability.processes import Proxy


class Disk(Protocol):
    """A folder that can be filled."""

    kind: str
    folder: Path

    def fill(self, proxy: Proxy, /) -> None: ...

    def free(self, proxy: Proxy, /) -> None: ...


class Small:
    """A small tmpfs, filled to the last byte and the last inode."""

    kind = "tmpfs"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, _: Proxy) -> None:
        self._ballast.mkdir(exist_ok=True)
        with (self._ballast / "bytes").open("ab", buffering=0) as out, _until_full():
            for size in (65536, 4096, 1):
                with _until_full():
                    while True:
                        out.write(b"x" * size)
        with _until_full():
            for number in range(1_000_000):
                (self._ballast / f"inode{number}").touch()

    def free(self, _: Proxy) -> None:
        for file in self._ballast.iterdir():
            file.unlink()


class Limited:
    """Where nothing may be mounted: the proxy's processes may write no file (RLIMIT_FSIZE), which they are told as EFBIG."""

    kind = "RLIMIT_FSIZE"

    def __init__(self, folder: Path, *, parent: bool, workers: bool) -> None:
        """Which processes write on that disk."""
        self.folder = folder
        self._parent, self._workers = parent, workers

    def fill(self, proxy: Proxy) -> None:
        self._limit(proxy, 0)

    def free(self, proxy: Proxy) -> None:
        self._limit(proxy, resource.RLIM_INFINITY)

    def _limit(self, proxy: Proxy, size: int) -> None:
        for pid in [proxy.pid] * self._parent + proxy.workers() * self._workers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def small(folder: Path, *, parent: bool, workers: bool, mount: bool = True, mebibytes: int = 64) -> Iterator[Disk]:
    """A disk at `folder`: a tmpfs, or where that may not be mounted (or with `mount` must not be) a limit of who writes on it."""
    folder.mkdir(parents=True)
    if not mount:
        yield Limited(folder, parent=parent, workers=workers)
        return
    options = f"size={mebibytes}m,nr_inodes=200,mode=0755"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "stillroom-test", folder], capture_output=True, check=False)
    if mounted.returncode != 0:
        yield Limited(folder, parent=parent, workers=workers)
        return
    try:
        yield Small(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
