"""The schema: made by migrations alone, as often and by as many as like, and the same as the tables say."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.orm.attributes import flag_modified
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


def test_threads_that_migrate_databases_of_their_own_at_once_all_get_there(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path}/{number}.db") for number in range(4)]
    together = threading.Barrier(len(databases))

    def start(database: Database) -> set[str]:
        together.wait()
        migrate.upgrade(database)
        return set(sa.inspect(database.engine).get_table_names())

    with ThreadPoolExecutor(len(databases)) as threads:
        assert all(found >= set(SQLModel.metadata.tables) for found in threads.map(start, databases))
    for database in databases:
        database.close()


TOOLS = [{"type": "function", "function": {"parameters": {"z": {}, "a": {}}, "name": "f", "description": "\\u00e9"}}]


def test_rows_go_through_every_migration_up_and_down(blank: Database) -> None:
    _to(blank, command.upgrade, "0001")
    with blank.begin() as session:
        session.execute(
            sa.text(
                "INSERT INTO captures (id, created_at, task_id, endpoint, status, served_by, model, stream, request, response, "
                "prompt_text, answer_text, retry_count, meta) "
                "VALUES ('cap_1', :at, 'task_1', '/', 'complete', 'teacher', 'm', false, '', '', '', '', 0, '{}')"
            ),
            {"at": "2026-01-01 00:00:00"},
        )
        session.execute(
            sa.text(
                "INSERT INTO pairs (id, task_id, capture_id, status, reason, content_hash, conversation, messages, tools, "
                "response_format, completion, created_at) "
                "VALUES ('pair_1', 'task_1', 'cap_1', 'ready', '', '', '', '[]', :tools, NULL, :answer, :at)"
            ),
            {"tools": json.dumps(TOOLS), "answer": json.dumps({"role": "assistant", "content": "x"}), "at": "2026-01-01 00:00:00"},
        )
    migrate.upgrade(blank)
    with blank.begin() as session:
        pair = session.get_one(tables.Pair, "pair_1")
        assert (pair.tools, pair.response_format, pair.completion["content"]) == (TOOLS, None, "x")
        pair.tools = [*TOOLS]
        flag_modified(pair, "tools")
    with blank.read() as session:
        assert json.dumps(session.get_one(tables.Pair, "pair_1").tools) == json.dumps(TOOLS)  # from now on in their order
    _to(blank, command.downgrade, "0001")
    with blank.read() as session:
        tools, absent = session.execute(sa.text("SELECT tools, response_format FROM pairs")).one()
        assert (json.loads(tools) if isinstance(tools, str) else tools, absent) == (TOOLS, None)
    migrate.upgrade(blank)


def _to(db: Database, move: Callable[[Config, str], None], revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    with db.engine.begin() as connection:
        config.attributes["connection"] = connection
        move(config, revision)
