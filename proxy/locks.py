"""A file's lock as the sign that a process lives: the kernel lets go of it however the process ends."""

import fcntl
import os
from pathlib import Path


def take(path: Path, *, make: bool = False) -> int | None:
    """Lock a file; the descriptor to close, or None if another holds it. `make` it if it is missing. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
