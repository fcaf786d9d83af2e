"""Cursors over tables whose rows are ordered in their own ways."""

import pytest

from admin import records
from admin.problems import NotFound
from store import audit
from store.session import Database
from store.states import EngineStatus
from store.tables import AuditEvent, Engine


def test_numbered_rows_are_paged_by_their_number(db: Database) -> None:
    with db.begin() as session:
        for n in range(12):
            audit.record(session, "me", f"action {n}")
            session.flush()
    seen: list[str] = []
    after, more = None, True
    while more:
        with db.read() as session:
            page = records.listing(session, records.KINDS["audit"], after=after, limit=5)
        seen += [event.action for event in page.data]
        after, more = str(page.data[-1].id), page.has_more
    assert seen == [f"action {n}" for n in reversed(range(12))]


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "999999"])
def test_a_cursor_that_is_no_row_is_told(db: Database, after: str) -> None:
    with db.read() as session, pytest.raises(NotFound, match="no such row"):
        records.listing(session, records.KINDS["audit"], after=after)


def test_rows_without_a_time_are_paged_by_their_id(db: Database) -> None:
    with db.begin() as session:
        session.add_all(Engine(id=name, status=EngineStatus.READY) for name in "abc")
    with db.read() as session:
        page = records.listing(session, records.KINDS["engines"], after="c", limit=1)
    assert ([row.id for row in page.data], page.has_more) == (["b"], True)


def test_a_page_has_never_more_rows_than_the_limit(db: Database) -> None:
    with db.begin() as session:
        session.add_all(AuditEvent(actor="me", action="x") for _ in range(250))
    with db.read() as session:
        page = records.listing(session, records.KINDS["audit"], limit=10_000)
    assert (len(page.data), page.has_more) == (200, True)


def test_a_tasks_events_are_those_about_it(db: Database) -> None:
    with db.begin() as session:
        audit.record(session, "me", "train", "task_1")
        audit.record(session, "me", "train", "task_2")
    with db.read() as session:
        page = records.listing(session, records.KINDS["audit"], task_id="task_1")
    assert [event.subject for event in page.data] == ["task_1"]
