"""The schema: made by migrations alone, as often and by as many as like, and the same as the tables say."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.orm.attributes import flag_modified
from sqlmodel import SQLModel

from store import captures, migrate, tables
from store.packing import Packer
from store.session import Database
from tests.store import test_captures


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


def test_captures_keep_all_they_have_through_the_migration_that_packs_new_ones(blank: Database) -> None:
    _to(blank, command.upgrade, "0003")
    before = {
        "id": "cap_1", "created_at": "2026-01-02 03:04:05.000678", "task_id": "task_1", "endpoint": "/v1/responses",
        "status": "failed", "served_by": "student", "adapter_id": "task_1@v1", "fallback": None, "model": "m", "stream": True,
        "http_status": None,
        "request": b"\x00\xffrequest", "response": b"answer", "prompt_text": "Grüße", "answer_text": "x",
        "finish_reason": None, "prompt_tokens": 3, "completion_tokens": None, "first_byte_ms": 1.5, "duration_ms": None,
        "retry_count": 2, "error": "no", "meta": '{"user": "ann"}',
    }  # fmt: skip
    other = {**before, "id": "cap_2", "http_status": 200, "created_at": "2026-01-02 03:04:05"}
    insert = f"INSERT INTO captures ({', '.join(before)}) VALUES ({', '.join(':' + name for name in before)})"
    with blank.begin() as session:
        for row in (before, other, {**before, "id": "cap_3"}):
            session.execute(sa.text(insert), row)
    migrate.upgrade(blank)
    with blank.begin() as session:
        one, two = session.get_one(tables.Capture, "cap_1"), session.get_one(tables.Capture, "cap_2")
        assert one.created_at == datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
        assert (two.created_at, two.http_status) == (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), 200)
        for name in set(before) - {"id", "created_at", "meta"}:
            assert getattr(one, name) == before[name], name
        assert one.meta == {"user": "ann"}
        assert session.execute(sa.text("SELECT count(*) FROM capture_kinds")).scalar_one() == 2
        told = {n: test_captures.capture(n) for n in range(40)}
        captures.write(session, [*told.values()], Packer())
    _to(blank, command.downgrade, "0003")
    with blank.read() as session:
        back = {row.id: row for row in session.execute(sa.text("SELECT * FROM captures"))}
    assert len(back) == 43
    for name in set(before) - {"created_at", "meta"}:
        value = getattr(back["cap_1"], name)
        assert (bytes(value) if isinstance(value, memoryview) else value) == before[name], name
    for capture in told.values():
        row = back[capture.id]
        assert [bytes(row.request), bytes(row.response), row.prompt_text.encode(), row.answer_text.encode()] == capture.parts()
        assert (row.task_id, row.status, row.served_by) == ("task_1", "complete", "teacher")
    assert "2026-01-02 03:04:05.000678" in str(back["cap_1"].created_at)
    migrate.upgrade(blank)
    with blank.read() as session:
        assert session.get_one(tables.Capture, capture.id).parts() == capture.parts()
        assert session.get_one(tables.Capture, "cap_1").created_at == one.created_at


def _to(db: Database, move: Callable[[Config, str], None], revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    with db.engine.begin() as connection:
        config.attributes["connection"] = connection
        move(config, revision)
