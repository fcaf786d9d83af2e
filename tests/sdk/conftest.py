"""A real `python -m proxy` before a mock, and the mock alone: what a client sees must be the same."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import migrate
from store.session import Database
from tests.proxy.conftest import until
from tests.sdk.examples import Api
from tests.sdk.mock import Mock

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".cache/clients"  #: environments of the clients, by `make .cache/clients/.ok`


class Proxy:
    """`python -m proxy` with its own home."""

    def __init__(self, home: Path, teacher_url: str) -> None:
        self.home = home
        home.mkdir()
        self._log = home / "log"
        settings = {
            "HOME": str(home),
            "PROXY_PORT": "0",
            "TEACHER_URL": teacher_url,
            "DATABASE_URL": f"sqlite:///{home}/stillroom.db",
        }
        environment = {**os.environ, **{f"STILLROOM_{name}": value for name, value in settings.items()}}
        self.db = Database(settings["DATABASE_URL"])
        migrate.upgrade(self.db)
        with self._log.open("wb") as out:
            self._process = subprocess.Popen([sys.executable, "-m", "proxy"], env=environment, stdout=out, stderr=out, cwd=ROOT)
        found = until(lambda: re.search(r"running on (http://\S+)", self._log.read_text()), 60)
        self.url = f"{found[1]}/v1"

    def stop(self) -> str:
        """End it; what it has logged."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(40) == 0
        self.db.close()
        return self._log.read_text()


@pytest.fixture(scope="session")
def api() -> Api:
    return Api()


@pytest.fixture
def mock(api: Api) -> Iterator[Mock]:
    """The one that is asked directly."""
    mock = Mock(api)
    yield mock
    mock.stop()


@pytest.fixture
def teacher(api: Api) -> Iterator[Mock]:
    """The one behind the proxy."""
    mock = Mock(api)
    yield mock
    mock.stop()


@pytest.fixture
def proxy(teacher: Mock, tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path / "home", teacher.url)
    yield proxy
    log = proxy.stop()
    assert "Traceback" not in log, log
