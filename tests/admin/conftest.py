"""The admin API and the command line over a SQLite of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner, Result

from admin import auth
from admin.app import build
from admin.cli import app
from store.session import Database
from store.settings import StoreSettings


@pytest.fixture
def token(sqlite: Database) -> str:
    with sqlite.begin() as session:
        return auth.make(session, "tests", by="tests")


@pytest.fixture
def client(sqlite: Database, token: str, tmp_path: Path) -> Iterator[TestClient]:
    """A client with a valid token; errors of the server are answers, as they are over the wire."""
    api = build(sqlite, StoreSettings(home=tmp_path))
    with TestClient(api, raise_server_exceptions=False, headers={"authorization": f"Bearer {token}"}) as client:
        yield client


@pytest.fixture
def stillroom(sqlite: Database, tmp_path: Path) -> Callable[..., Result]:
    """The `stillroom` command, in this process: `stillroom("tasks", "--json")`."""
    runner = CliRunner(env={"STILLROOM_HOME": str(tmp_path), "STILLROOM_DATABASE_URL": None, "COLUMNS": "200"})

    def run(*arguments: str, **options: str) -> Result:
        return runner.invoke(app, list(arguments), **options)

    return run
