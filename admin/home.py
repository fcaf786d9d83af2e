"""What runs on a home folder: one `stillroom up`, known by a lock on its pid file, and its rooms."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from pydantic import BaseModel, Field

from admin.problems import Conflict

ROOMS = ("proxy", "distill", "serving", "admin")


class RoomProcess(BaseModel):
    """A room that `stillroom up` runs."""

    room: str
    pid: int
    seconds: float = Field(description="How long it has been running.")
    memory_mib: int = Field(description="Resident memory of it and of everything it started.")


class Spool(BaseModel):
    """Captures on their way into the database."""

    files: int = 0
    bytes: int = 0
    rejected: int = Field(0, description="Captures that the database would not take; set aside in spool/rejected.")


@contextmanager
def lock(home: Path) -> Iterator[None]:
    """This process is the home's only `stillroom up`. Raises Conflict if another one is.

    The lock goes with the process, however it ends; the pid in the file is for people.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)  # what clients say is kept in it
    with _pid_file(home).open("a+") as file:
        for attempt in range(10):  # a dying one lets go when the kernel has buried it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 9:
                    file.seek(0)
                    pid = file.read().strip()
                    raise Conflict(
                        f"stillroom is running on {home} already (pid {pid}). Stop it with Ctrl-C or `kill {pid}`, "
                        "or set STILLROOM_HOME and ports for another one.",
                        "already_running",
                    ) from None
                time.sleep(0.1)
        file.seek(0)
        file.truncate()
        file.write(f"{psutil.Process().pid}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def running(home: Path) -> psutil.Process | None:
    """The home's `stillroom up`, if there is one."""
    try:
        with _pid_file(home).open() as file:
            pid = file.read().strip()
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return psutil.Process(int(pid)) if pid.isdecimal() else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return None  # nobody holds the lock


def rooms(up: psutil.Process) -> list[RoomProcess]:
    """The rooms it runs now."""
    found = []
    for child in up.children():
        try:
            room, everything = child.cmdline()[-1], [child, *child.children(recursive=True)]
            if room in ROOMS:
                memory = sum(each.memory_info().rss for each in everything)
                found.append(
                    RoomProcess(
                        room=room, pid=child.pid, seconds=round(time.time() - child.create_time(), 1), memory_mib=memory >> 20
                    )
                )
        except (psutil.Error, IndexError):  # it ended while we looked
            continue
    return sorted(found, key=lambda each: ROOMS.index(each.room))


def spool(home: Path) -> Spool:
    """What the proxy has not yet brought into the database, or has not yet tidied away."""
    sizes = []
    for path in (home / "spool").glob("*/*.seg"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # tidied away
            continue
    rejected = sum(1 for _ in (home / "spool" / "rejected").glob("*.json"))
    return Spool(files=len(sizes), bytes=sum(sizes), rejected=rejected)


def _pid_file(home: Path) -> Path:
    return home / "up.pid"
