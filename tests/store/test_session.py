"""Transactions: all or nothing, and writers that wait for one another."""

import json
import re
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import select

from store import audit, tasks
from store.session import Database
from store.states import CaptureStatus, ReviewKind, Server
from store.tables import AuditEvent, Capture, Review, Task

ROOT = Path(__file__).parents[2]


def names(db: Database) -> set[str]:
    with db.read() as session:
        return set(session.exec(select(Task.name)).all())


def test_what_a_block_wrote_is_there_after_it(db: Database) -> None:
    with db.begin() as session:
        session.add(Task(id="task_1", name="one"))
    assert names(db) == {"one"}


def test_a_block_that_raises_has_written_nothing(db: Database) -> None:
    def write_and_fail() -> None:
        with db.begin() as session:
            session.add(Task(id="task_1", name="one"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert names(db) == set()


def test_what_is_written_in_a_reading_block_is_lost(db: Database) -> None:
    with db.read() as session:
        session.add(Task(id="task_1", name="one"))
        session.flush()
    assert names(db) == set()


def test_rows_can_be_read_after_their_session_is_closed(db: Database) -> None:
    with db.begin() as session:
        session.add(Task(id="task_1", name="one", policy={"holdout": 0.5}))
    with db.read() as session:
        task = session.get_one(Task, "task_1")
    assert (task.name, task.policy) == ("one", {"holdout": 0.5})


def test_times_come_back_aware_and_the_same(db: Database) -> None:
    task = Task(id="task_1", name="one")
    made = task.created_at
    with db.begin() as session:
        session.add(task)
    with db.read() as session:
        read = session.get_one(Task, "task_1").created_at
    assert read == made
    assert read.tzinfo is not None


def test_a_time_without_a_zone_is_refused(db: Database) -> None:
    naive = Task(id="task_1", name="one")
    naive.created_at = naive.created_at.replace(tzinfo=None)
    with pytest.raises(sa.exc.StatementError, match="without a time zone"), db.begin() as session:
        session.add(naive)


def test_threads_that_read_and_then_write_lose_no_update(db: Database) -> None:
    with db.begin() as session:
        session.add(Task(id="task_1", name="one", policy={"n": 0}))

    def count_up() -> None:
        for _ in range(20):
            with db.begin() as session:
                task = session.get_one(Task, "task_1", with_for_update=True)
                task.policy = {"n": task.policy["n"] + 1}

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert session.get_one(Task, "task_1").policy == {"n": 80}


def test_a_reader_does_not_wait_for_a_writer(db: Database) -> None:
    with db.begin() as writing:
        writing.add(Task(id="task_1", name="one"))
        writing.flush()
        assert names(db) == set()
    assert names(db) == {"one"}


def test_a_value_that_is_no_state_is_refused(db: Database) -> None:
    with pytest.raises(sa.exc.StatementError, match="nonsense"), db.begin() as session:
        session.add(Task(id="task_1", name="one", status="nonsense"))


def test_only_the_session_commits() -> None:
    rooms = ("store", "proxy", "distill", "serving", "admin", "migrations")
    sources = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    committing = {str(path.relative_to(ROOT)) for path in sources if re.search(r"\bcommit\(", path.read_text())}
    assert len(sources) > 20
    assert committing <= {"store/session.py"}


def test_a_nul_character_in_what_people_sent_is_left_out_on_every_database(db: Database) -> None:
    identity = tasks.identify({"model": "m", "messages": [{"role": "system", "content": "be\0have"}]})
    with db.begin() as session:
        tasks.ensure(session, identity)
        audit.record(session, "test", "nul", detail={"text": "a\0b", "escaped": "\\u0000 is written like this"})
    with db.read() as session:
        assert session.exec(select(Task.system)).one() == "behave"
        assert session.exec(select(AuditEvent.detail)).one() == {"text": "ab", "escaped": "\\u0000 is written like this"}


def test_an_answer_keeps_the_order_of_its_keys(db: Database) -> None:
    correction = {"role": "assistant", "content": "", "b": {"z": 1, "a": 2}, "a": None}
    with db.begin() as session:
        session.add(Task(id="task_1", name="one"))
        session.add(
            Capture(
                id="cap_1", task_id="task_1", endpoint="/", status=CaptureStatus.COMPLETE, served_by=Server.TEACHER, request=b"{}"
            )
        )
        session.flush()
        session.add(Review(capture_id="cap_1", kind=ReviewKind.CORRECT, correction=correction))
    with db.read() as session:
        assert json.dumps(session.exec(select(Review.correction)).one()) == json.dumps(correction)


def test_a_vanished_postgresql_is_noticed_within_seconds(postgres: str) -> None:
    database = Database(postgres)
    with database.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        told = driver.info.get_parameters()
    database.close()
    wanted = {"keepalives": "1", "keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3"}
    assert told.items() >= {**wanted, "tcp_user_timeout": "10000", "connect_timeout": "5"}.items()


def test_a_home_and_a_sqlite_file_are_made_for_their_owner_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for home in (tmp_path, tmp_path / "home"):
        database = Database(f"sqlite:///{home}/stillroom.db")
        with database.begin() as session:
            session.execute(sa.text("CREATE TABLE t (x)"))
            modes = {path.name: oct(path.stat().st_mode & 0o777) for path in home.glob("stillroom.db*")}
            assert modes == dict.fromkeys(("stillroom.db", "stillroom.db-wal", "stillroom.db-shm"), "0o600")
        database.close()
    assert (tmp_path.stat().st_mode & 0o777, home.stat().st_mode & 0o777) == (0o755, 0o700)  # what was there is left alone


def test_a_database_in_memory_makes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite://", "sqlite:///:memory:"):
        with Database(url).begin() as session:
            session.execute(sa.text("CREATE TABLE t (x)"))
    assert list(tmp_path.iterdir()) == []
