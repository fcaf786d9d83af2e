"""Captures written many at a time and read back, and the dictionaries they are packed with; on both databases."""

import random
import string
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from sqlmodel import col, func, select

from store import blobs, captures, ids, packing
from store.blobs import BadFrame
from store.capture import CaptureKind, CaptureRow
from store.packing import Packer
from store.session import Database
from store.states import CaptureStatus, Server
from store.tables import Capture, Dictionary

RULES = "You sort parcels. Answer with the town alone, in capital letters, and nothing else. Mind the postcode. " * 8
OTHER = "Now you translate letters from French to German; keep names, numbers and the tone as they are. " * 8


def capture(n: int, rules: str = RULES, task: str = "task_1", **changes: Any) -> Capture:
    """An exchange with a text of its own under shared rules."""
    rng = random.Random(f"{rules}{n}")
    own = " ".join("".join(rng.choices(string.ascii_lowercase, k=7)) for _ in range(8))
    request = {"model": "big", "messages": [{"role": "system", "content": rules}, {"role": "user", "content": own}]}
    columns: dict[str, Any] = {
        "id": ids.new("cap"), "task_id": task, "endpoint": "/v1/chat/completions", "status": CaptureStatus.COMPLETE,
        "served_by": Server.TEACHER, "model": "big", "http_status": 200, "finish_reason": "stop",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n, microseconds=7),
        "first_byte_ms": 0.4, "duration_ms": 812.2,
        "request": orjson.dumps(request), "response": b'{"choices":[{"message":{"content":"%d"}}]}' % n,
        "prompt_text": own, "answer_text": str(n),
    }  # fmt: skip
    return Capture(**{**columns, **changes})


def write(db: Database, packer: Packer, *rows: Capture) -> list[str]:
    with db.begin() as session:
        return captures.write(session, rows, packer, tell=True)


def number_of(db: Database, table: Any) -> int:
    with db.read() as session:
        return session.exec(select(func.count()).select_from(table)).one()


def used(db: Database) -> list[int | None]:
    """The dictionary of each capture, oldest first."""
    with db.read() as session:
        return list(session.exec(select(Capture.dictionary_id).order_by(col(Capture.created_at))))


def test_all_columns_and_the_exact_bytes_come_back(db: Database) -> None:
    packer, odd = Packer(), bytes(range(256)) * 3
    rows = [capture(n) for n in range(60)]
    strange = [
        capture(60, request=odd, response=b"", prompt_text="", answer_text="Grüße 🌍 \ud800"),
        capture(
            61, stream=True, status=CaptureStatus.FAILED, http_status=None, finish_reason=None, adapter_id="a@v1", retry_count=2
        ),
        capture(62, served_by=Server.STUDENT, fallback="it hung", error="no", meta={"user": "ann", "deep": [1.5]}, prompt_tokens=7),
        capture(63, request=odd * 3000, model="x" * 200),
    ]
    given = {row.id: row for row in (*rows, *strange)}
    for start in range(0, 60, 20):
        write(db, packer, *rows[start : start + 20])
    write(db, packer, *strange)
    with db.read() as session:
        stored = session.exec(select(Capture)).all()
    assert {row.id for row in stored} == set(given)
    for row in stored:
        told = given[row.id]
        assert row.parts() == told.parts()
        assert (row.request, row.answer_text) == (told.request, told.answer_text)
        for name in {*captures.KIND, *captures.OWN} - {"dictionary_id", "first_byte_ms", "duration_ms"}:
            assert getattr(row, name) == getattr(told, name), name
        assert (row.first_byte_ms, row.duration_ms) == (1, 813)
    assert sum(each is None for each in used(db)) == 1  # the huge one
    assert number_of(db, Dictionary) == 1


def test_what_is_there_already_is_left_as_it_is(db: Database) -> None:
    one, two = capture(1), capture(2)
    assert write(db, Packer(), one) == [one.id]
    again = capture(3, id=one.id)
    assert sorted(write(db, Packer(), again, two, two)) == [two.id]
    assert write(db, Packer(), one, two) == []
    with db.read() as session:
        assert session.get_one(Capture, one.id).prompt_text == one.prompt_text
    assert number_of(db, CaptureRow) == 2


def test_a_writer_that_need_not_tell_stores_the_same_and_knows_its_own(db: Database) -> None:
    rows = [capture(n) for n in range(3)]
    with db.begin() as session:
        assert sorted(captures.write(session, [*rows, rows[0]], Packer())) == sorted(row.id for row in rows)
        assert captures.write(session, rows, Packer()) == []
    with db.read() as session:
        assert set(session.exec(select(Capture.id))) == {row.id for row in rows}


def test_what_captures_have_in_common_is_kept_once(db: Database) -> None:
    write(db, Packer(), *(capture(n) for n in range(10)), capture(10, model="small"), capture(11, task="task_2"))
    write(db, Packer(), *(capture(n, adapter_id=None) for n in range(12, 15)))
    assert number_of(db, CaptureKind) == 3
    with db.read() as session:
        assert len(session.exec(select(Capture).where(Capture.task_id == "task_1", Capture.model == "big")).all()) == 13


def test_a_task_with_few_captures_has_no_dictionary_and_each_task_has_its_own(db: Database) -> None:
    packer = Packer()
    write(db, packer, *(capture(n) for n in range(packing.FIRST - 1)))
    assert number_of(db, Dictionary) == 0
    write(db, packer, capture(50), *(capture(51 + n, OTHER, "task_2") for n in range(packing.FIRST)))
    last = used(db)
    assert last[: packing.FIRST - 1] == [None] * (packing.FIRST - 1)
    assert None not in last[packing.FIRST - 1 :]
    assert len(set(last)) == 3
    with db.read() as session:
        contents = {row.task_id: row.content() for row in session.exec(select(Dictionary))}
    assert RULES.encode() in contents["task_1"]
    assert RULES.encode() not in contents["task_2"]


def test_nobodys_own_text_is_in_a_dictionary(db: Database) -> None:
    rows = [capture(n) for n in range(40)]
    write(db, Packer(), *rows)
    with db.read() as session:
        content = session.exec(select(Dictionary)).one().content()
    assert [word for row in rows for word in row.prompt_text.split() if word.encode() in content] == []


def test_all_from_one_person_or_one_conversation_makes_no_dictionary_of_what_it_says(db: Database) -> None:
    packer = Packer()
    same = [{"role": "user", "content": "I am Ada Lovelace of 12 Old Street."}]
    for n in range(40):
        turns = [*same, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": f"More {n}."}]
        write(db, packer, capture(n, request=orjson.dumps({"messages": [{"role": "system", "content": RULES}, *turns]})))
    assert number_of(db, Dictionary) == 0


def test_a_writer_that_starts_anew_goes_on_with_the_dictionary(db: Database) -> None:
    write(db, Packer(), *(capture(n) for n in range(20)))
    write(db, Packer(), capture(20))
    assert len({*used(db)}) == 1
    assert number_of(db, Dictionary) == 1


def test_captures_of_before_count_for_a_writer_that_starts_anew(db: Database) -> None:
    for n in range(packing.FIRST + 4):
        write(db, Packer(), capture(n))
    assert number_of(db, Dictionary) == 1
    assert used(db)[-1] is not None


def test_a_prompt_that_changes_gets_a_new_dictionary(db: Database) -> None:
    packer = Packer()
    for n in range(0, 200, 20):
        write(db, packer, *(capture(n + i) for i in range(20)))
    before = number_of(db, Dictionary)
    for n in range(200, 500, 20):
        write(db, packer, *(capture(n + i, OTHER) for i in range(20)))
    assert number_of(db, Dictionary) == before + 1
    with db.read() as session:
        stored = session.exec(select(Capture).order_by(col(Capture.created_at))).all()
        sizes = [len(row.packed or b"") for row in stored]
        assert OTHER.encode() in stored[-1].request
    assert max(sizes[199], sizes[-1]) < sizes[210] * 0.8


def test_answers_that_no_dictionary_makes_smaller_are_put_up_with(db: Database) -> None:
    packer, rng = Packer(), random.Random(1)
    for n in range(0, 2000, 100):
        noise = 3000 if n % 200 else 50
        write(db, packer, *(capture(n + i, response=rng.randbytes(noise)) for i in range(100)))
    assert number_of(db, Dictionary) <= 2
    assert packer._tasks["task_1"].patience >= 4 * packing.RECENT


def test_a_task_has_no_more_dictionaries_than_it_may(db: Database) -> None:
    packer = Packer()
    write(db, packer, *(capture(n) for n in range(20)))
    packer._tasks["task_1"].made = packing.MOST
    for n in range(100, 400, 50):
        write(db, packer, *(capture(n + i, OTHER) for i in range(50)))
    assert number_of(db, Dictionary) == 1


def test_a_transaction_that_fails_takes_its_dictionary_with_it_and_the_next_brings_it_back(db: Database) -> None:
    packer, rows = Packer(), [capture(n) for n in range(20)]
    with db.read() as session:  # always rolled back
        captures.write(session, rows, packer)
    assert (number_of(db, Dictionary), number_of(db, CaptureKind), number_of(db, CaptureRow)) == (0, 0, 0)
    write(db, packer, *rows)
    assert None not in used(db)
    with db.read() as session:
        assert {row.request for row in session.exec(select(Capture))} == {row.request for row in rows}


def test_a_database_that_is_replaced_by_an_empty_one_gets_all_it_needs(db: Database) -> None:
    packer = Packer()
    write(db, packer, *(capture(n) for n in range(20)))
    with db.begin() as session:
        for table in ("captures", "capture_kinds", "dictionaries"):
            session.execute(sa.text(f"DELETE FROM {table}"))
    write(db, packer, late := capture(30))
    with db.read() as session:
        assert session.get_one(Capture, late.id).request == late.request
    assert None not in used(db)


def test_a_dictionary_that_is_not_what_it_was_is_told_and_not_used(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    write(db, Packer(), *(capture(n) for n in range(20)))
    with db.begin() as session:
        session.execute(sa.update(Dictionary).values(packed=blobs.seal(b"something else")))
    write(db, packer := Packer(), late := capture(30))
    assert "cannot be read" in caplog.text
    packer._tasks["task_1"].due = 0
    write(db, packer, *(capture(n) for n in range(40, 60)))
    assert len({*used(db)[-20:]} - {None}) == 1  # a new one is made of what can be read
    with db.read() as session:
        assert session.get_one(Capture, late.id).request == late.request
        with pytest.raises(BadFrame, match="is not what it was"):
            _ = session.exec(select(Capture).order_by(Capture.id)).first().request  # type: ignore[union-attr]


def test_many_captures_are_read_with_one_query_for_their_dictionaries(db: Database) -> None:
    write(db, Packer(), *(capture(n) for n in range(200)))
    statements: list[str] = []
    sa.event.listen(db.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with db.read() as session:
        rows = session.exec(select(Capture)).all()
        assert all(row.request and row.response for row in rows)
    assert len(rows) == 200
    assert len([each for each in statements if each.startswith("SELECT")]) == 2


def test_texts_are_read_in_the_querys_order_packed_or_not(db: Database) -> None:
    plain = capture(5, prompt_text="as it was", answer_text="before")
    with db.begin() as session:
        session.add(plain)
    rows = [capture(n) for n in range(10, 30)]
    write(db, Packer(), *rows)
    with db.read() as session:
        query = select(Capture).order_by(col(Capture.created_at))
        found = list(captures.texts(session, query, Capture.id))
    assert found == [(row.id, row.prompt_text, row.answer_text) for row in (plain, *rows)]


def test_a_stored_capture_can_get_another_body(db: Database) -> None:
    write(db, Packer(), *(rows := [capture(n) for n in range(20)]))
    with db.begin() as session:
        session.get_one(Capture, rows[0].id).request = b"{broken"
    with db.read() as session:
        found = session.get_one(Capture, rows[0].id)
        assert (found.request, found.response, found.prompt_text) == (b"{broken", rows[0].response, rows[0].prompt_text)
        assert session.get_one(Capture, rows[1].id).request == rows[1].request


def test_what_other_captures_share_cannot_be_changed_through_one(db: Database) -> None:
    write(db, Packer(), one := capture(1), capture(2))
    with pytest.raises(TypeError, match="status of cap_"), db.begin() as session:
        session.get_one(Capture, one.id).status = CaptureStatus.FAILED
    with pytest.raises(TypeError, match="shares its kind"), db.begin() as session:
        session.delete(session.get_one(Capture, one.id))
    assert number_of(db, Capture) == 2


def test_a_body_is_no_column_to_ask_for() -> None:
    with pytest.raises(sa.exc.ArgumentError):
        select(Capture.request)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="has no colour"):
        Capture(id="cap_1", colour="red")
