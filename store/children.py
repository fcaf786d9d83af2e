"""Child processes that do not outlive their parent, and are stopped with everything they started."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def spawn(
    command: Sequence[str | Path],
    *,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    environment: Mapping[str, str] | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a process in its own session; on Linux it gets `death_signal` when the thread that spawned it ends.

    So spawn from a thread that lives as long as the child should. `environment` is added to this process's own.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        if not _tied(parent, death_signal):
            os._exit(1)

    return subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def follow(parent: int) -> None:
    """In a child: die (SIGKILL) with the process that started it; on Linux. Exits if that one is dead already."""
    if not _tied(parent, signal.SIGKILL):
        sys.exit(1)


def stop(child: subprocess.Popen[bytes], grace: float) -> int:
    """SIGTERM to the child's whole group, SIGKILL after `grace` seconds. Returns its exit code (negative: by signal)."""
    if child.returncode is not None:  # waited for before: its id may be somebody else's by now
        return child.returncode
    signal_group(child, signal.SIGTERM)
    try:
        return child.wait(grace)
    except subprocess.TimeoutExpired:
        signal_group(child, signal.SIGKILL)
        return child.wait()
    finally:
        signal_group(child, signal.SIGKILL)  # what it started and left behind: dead within milliseconds, not waited for


def signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the child and all in its process group; nothing happens if they are gone."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


def _tied(parent: int, death_signal: signal.Signals) -> bool:
    """Have the kernel send this process the signal when its parent dies (Linux alone can); False if it is dead already."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal))
    return os.getppid() == parent
