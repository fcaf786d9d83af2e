"""A real Ray cluster of one node, that only this machine, and only who has its token, can speak to."""

import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from store import children


@contextmanager
def ray_cluster(processors: int = 2) -> Iterator[str]:
    """Its address; what the environment must say to reach it is set meanwhile. Nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets' paths must be short
    (folder / "token").write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as there, all is at 127.0.0.1
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        port = free_port()
        start = ["--head", "--block", "--port", str(port), "--num-cpus", str(processors), "--include-dashboard=false"]
        start += ["--disable-usage-stats", "--temp-dir", str(folder), "--object-store-memory", "100000000"]
        head = children.spawn([sys.executable, "-m", "ray.scripts.scripts", "start", *start], stdout=subprocess.PIPE)
        try:
            assert head.stdout is not None
            assert any(b"Ray runtime started" in line for line in head.stdout)
            yield f"127.0.0.1:{port}"
        finally:
            family = psutil.Process(head.pid).children(recursive=True)
            children.stop(head, grace=0)  # in good order it would take half a minute
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
