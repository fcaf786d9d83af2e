"""Databases for the tests: SQLite and a real PostgreSQL that pip installed; no service has to be set up."""

import gc
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import SQLModel

from store import migrate
from store.session import Database
from store.settings import StoreSettings
from tests.postgres import server

NAMES = count()
#: Where several processes share the work, a file each, those that take minutes come first, and not all at once those with a vLLM.
FIRST = ("acceptance/test_demo", "acceptance/test_kills", "durability", "acceptance/test_methods", "sdk", "acceptance", "distill")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of FIRST, all others behind them."""

    def rank(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(FIRST) if f"tests/{name}" in item.nodeid), len(FIRST))

    items.sort(key=rank)


@pytest.fixture(scope="module", autouse=True)
def short_pauses() -> None:
    """What has been loaded so far is not looked at by the garbage collector any more: with torch and all rooms in one process a
    collection would stop the servers in threads of it for longer than some tests wait.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server, started for the first test that wants one and gone with the last."""
    with server() as started:
        address = _plain(started.get_uri())
        _execute(address, "ALTER SYSTEM SET fsync = off")  # nothing here has to survive the machine
        _execute(address, "SELECT pg_reload_conf()")
        yield address


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema, to copy."""
    path = tmp_path_factory.mktemp("migrated") / "stillroom.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_migrated(postgres: str) -> str:
    """The address of a PostgreSQL database with the schema."""
    _execute(postgres, "CREATE DATABASE migrated")
    _migrate(_named(postgres, "migrated"))
    return _named(postgres, "migrated")


@pytest.fixture
def postgres_blank(postgres: str) -> str:
    """The address of a PostgreSQL database with nothing in it."""
    name = f"blank{next(NAMES)}"
    _execute(postgres, f"CREATE DATABASE {name}")
    return _named(postgres, name)


@pytest.fixture(params=["sqlite", "postgresql"])
def blank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with nothing in it, of both kinds."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path}/stillroom.db")
    else:
        database = Database(request.getfixturevalue("postgres_blank"))
    yield database
    database.close()


@pytest.fixture
def sqlite(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """SQLite with the schema and no rows, where settings with `home=tmp_path` find it."""
    shutil.copy(migrated, tmp_path / "stillroom.db")
    database = Database(StoreSettings(home=tmp_path, database_url=None).url)
    yield database
    database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database with the schema and no rows, of both kinds."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    database = Database(request.getfixturevalue("postgres_migrated"))
    yield database
    with database.begin() as session:  # the same one for every test: making one takes half a second
        for table in reversed(SQLModel.metadata.sorted_tables):
            session.execute(table.delete())
    database.close()


def _plain(uri: str) -> str:
    return StoreSettings(database_url=uri).url


def _named(server: str, name: str) -> str:
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


def _migrate(url: str) -> None:
    database = Database(url)
    migrate.upgrade(database)
    database.close()


def _execute(server: str, statement: str) -> None:
    """Outside a transaction, as CREATE DATABASE and ALTER SYSTEM want it."""
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
