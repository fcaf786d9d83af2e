"""The schema: made by migrations alone, as often and by as many as like, and the same as the tables say."""

import threading

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import SQLModel

from store import migrate, tables
from store.session import Database


def test_migrating_twice_changes_nothing(blank: Database) -> None:
    migrate.upgrade(blank)
    with blank.begin() as session:
        session.add(tables.Task(id="task_1", name="one"))
    migrate.upgrade(blank)
    with blank.read() as session:
        assert session.get_one(tables.Task, "task_1").name == "one"


def test_processes_that_start_together_all_find_the_schema(blank: Database) -> None:
    errors: list[Exception] = []
    together = threading.Barrier(4)

    def start() -> None:
        mine = Database(blank.engine.url.render_as_string(hide_password=False))
        together.wait()
        try:
            migrate.upgrade(mine)
            with mine.read() as session:
                session.get(tables.Task, "task_1")
        except Exception as error:  # noqa: BLE001 - the assertion shows it
            errors.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_migrations_make_exactly_the_tables(db: Database) -> None:
    with db.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
    assert differences == []


def test_every_table_of_the_code_is_in_the_database(db: Database) -> None:
    with db.engine.connect() as connection:
        assert set(SQLModel.metadata.tables) | {"alembic_version"} == set(sa.inspect(connection).get_table_names())
