"""Found first by the interpreters of a proxy under test: what reaches the disk is written down, and tasks can be counted.

STILLROOM_TEST_SYNCS: a file that gets a line for each flush that has ended: when, how much of a file was on the disk then, or which
names in a folder. STILLROOM_TEST_SYNC_SECONDS: how long each takes. STILLROOM_TEST_TASKS: SIGUSR2 writes a file of this name and
the process's id.
"""

import asyncio
import json
import os
import signal
import stat
import time
from pathlib import Path

_TASKS = os.environ.get("STILLROOM_TEST_TASKS")
_SYNCS = os.environ.get("STILLROOM_TEST_SYNCS")
_SECONDS = float(os.environ.get("STILLROOM_TEST_SYNC_SECONDS", "0"))


def _flushing(really):
    def flush(fd):
        state = os.fstat(fd)
        path = Path(f"/proc/self/fd/{fd}").readlink()
        names = sorted(each.name for each in path.iterdir()) if stat.S_ISDIR(state.st_mode) else None
        time.sleep(_SECONDS)
        really(fd)
        line = {"at": time.monotonic(), "path": str(path), "size": state.st_size, "names": names}
        log = os.open(_SYNCS, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        os.write(log, json.dumps(line).encode() + b"\n")
        os.close(log)

    return flush


def _count_tasks(*_):
    loop = asyncio._get_running_loop()
    count = len(asyncio.all_tasks(loop)) if loop else 0
    unfinished = Path(f"{_TASKS}.{os.getpid()}.tmp")
    unfinished.write_text(str(count))
    unfinished.rename(f"{_TASKS}.{os.getpid()}")


if _SYNCS:
    os.fdatasync, os.fsync = _flushing(os.fdatasync), _flushing(os.fsync)
if _TASKS:
    signal.signal(signal.SIGUSR2, _count_tasks)
