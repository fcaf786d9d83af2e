"""Finding captures, and one with both answers; on SQLite and on PostgreSQL."""

from datetime import timedelta
from typing import Any

import orjson
import pytest

from admin import captures, pairs, reviews
from admin.captures import Filter
from admin.problems import NotFound
from store import captures as written
from store import tasks
from store.chat import RESPONSES
from store.columns import now
from store.packing import Packer
from store.session import Database
from store.states import CaptureStatus, ReviewKind, Server, Split
from tests.admin import rows


def prompts(db: Database, wanted: Filter, **page: Any) -> list[str]:
    with db.read() as session:
        return [line.prompt for line in captures.listing(session, wanted, **page).data]


def test_captures_come_newest_first_page_by_page(db: Database) -> None:
    with db.begin() as session:
        for n in range(7):
            rows.capture(session, f"{n}", minutes_ago=n)
    seen: list[str] = []
    after = None
    for _ in range(3):
        with db.read() as session:
            page = captures.listing(session, Filter(), after=after, limit=3)
        seen += [line.prompt for line in page.data]
        after = page.data[-1].id
    assert seen == [f"{n}" for n in range(7)]
    assert not page.has_more


def test_rows_that_come_in_between_two_pages_shift_nothing(db: Database) -> None:
    with db.begin() as session:
        for n in range(4):
            rows.capture(session, f"{n}", minutes_ago=n)
    with db.read() as session:
        first = captures.listing(session, Filter(), limit=2)
    with db.begin() as session:
        rows.capture(session, "new")
    assert prompts(db, Filter(), after=first.data[-1].id) == ["2", "3"]


def test_captures_of_the_same_instant_are_each_seen_once(db: Database) -> None:
    time = now()
    with db.begin() as session:
        for n in range(5):
            rows.capture(session, f"{n}", created_at=time)
    with db.read() as session:
        first = captures.listing(session, Filter(), limit=2)
        rest = captures.listing(session, Filter(), after=first.data[-1].id)
    assert sorted(line.prompt for line in [*first.data, *rest.data]) == ["0", "1", "2", "3", "4"]


def test_an_unknown_cursor_is_told(db: Database) -> None:
    with pytest.raises(NotFound, match="cap_nothing"):
        prompts(db, Filter(), after="cap_nothing")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(status=CaptureStatus.FAILED), ["failed"]),
        (Filter(served_by=Server.STUDENT), ["student"]),
        (Filter(since=now() - timedelta(minutes=30)), ["plain", "failed", "student"]),
        (Filter(until=now() - timedelta(minutes=30)), ["old"]),
        (Filter(status=CaptureStatus.COMPLETE, served_by=Server.TEACHER), ["plain", "old"]),
    ],
)
def test_captures_are_filtered(db: Database, wanted: Filter, found: list[str]) -> None:
    with db.begin() as session:
        rows.capture(session, "old", minutes_ago=60)
        rows.capture(session, "student", minutes_ago=3, served_by=Server.STUDENT, adapter_id="a@v1")
        rows.capture(session, "failed", minutes_ago=2, status=CaptureStatus.FAILED)
        rows.capture(session, "plain", minutes_ago=1)
    assert prompts(db, wanted) == found


def test_captures_are_filtered_by_task(db: Database) -> None:
    with db.begin() as session:
        one = rows.capture(session, "one")
        rows.capture(session, "two", request={"model": "other"})
    assert prompts(db, Filter(task_id=one.task_id)) == ["one"]


@pytest.mark.parametrize("text", ["ÄRGER", "ärger", "Ärger", "MIT DER KARTE"])
def test_a_search_does_not_mind_case_in_any_alphabet(db: Database, text: str) -> None:
    with db.begin() as session:
        rows.capture(session, "Ärger mit der Karte")
        rows.capture(session, "Freude")
    assert prompts(db, Filter(q=text)) == ["Ärger mit der Karte"]


def test_a_search_looks_at_answers_too(db: Database) -> None:
    with db.begin() as session:
        rows.capture(session, "question", "Category: Billing")
    assert prompts(db, Filter(q="billing")) == ["question"]


@pytest.mark.parametrize("text", ["100%", "a_b", "\\"])
def test_a_search_takes_signs_literally(db: Database, text: str) -> None:
    with db.begin() as session:
        rows.capture(session, f"<{text}>")
        rows.capture(session, "100 aXb /")
    assert prompts(db, Filter(q=text)) == [f"<{text}>"]


def test_the_last_judgement_counts_as_a_captures_review(db: Database) -> None:
    with db.begin() as session:
        changed, approved, tagged, _untouched = (rows.capture(session, name, minutes_ago=n) for n, name in enumerate("catu"))
        reviews.approve(session, changed.id, by="me")
        reviews.reject(session, changed.id, by="me")
        reviews.approve(session, approved.id, by="me")
        reviews.tag(session, approved.id, ["x"], by="me")
        reviews.tag(session, tagged.id, ["x", "straße"], by="me")
    assert prompts(db, Filter(review="reject")) == ["c"]
    assert prompts(db, Filter(review="approve")) == ["a"]
    assert prompts(db, Filter(review="tag")) == ["a", "t"]
    assert prompts(db, Filter(review="none")) == ["t", "u"]
    assert prompts(db, Filter(tag="x")) == ["a", "t"]
    assert prompts(db, Filter(tag="straße")) == ["t"]
    assert prompts(db, Filter(tag="stra")) == []


def test_one_capture_has_its_bodies_reviews_pair_and_the_teachers_answer(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "4?")
        pair = rows.pair(session, capture)
        reviews.approve(session, capture.id, by="me", note="fine")
    with db.read() as session:
        one = captures.one(session, capture.id)
    assert one.request == rows.asked("4?")
    assert one.response == rows.said("even")
    assert one.pair is not None
    assert (one.pair.id, one.pair.split) == (pair.id, Split.TRAIN)
    assert [(review.kind, review.note) for review in one.reviews] == [(ReviewKind.APPROVE, "fine")]
    assert one.teacher is not None
    assert one.teacher.message == {"role": "assistant", "content": "even"}
    assert one.teacher.live
    assert one.student is None
    assert one.task.startswith("say-whether")


def test_a_pairs_id_finds_its_capture(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "4?")
        pair = rows.pair(session, capture)
    with db.read() as session:
        assert captures.one(session, pair.id).id == capture.id


def test_a_streams_deltas_are_shown_as_one_message(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "4?", stream=True, response=rows.streamed("even"))
    with db.read() as session:
        one = captures.one(session, capture.id)
    assert one.response["message"] == {"role": "assistant", "content": "even"}
    assert one.response["ended"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_shown_as_a_message(db: Database, stream: bool) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "find", "arguments": "{}"}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "odd"}]}
    response = {"status": "completed", "output": [said, call], "usage": {"input_tokens": 3, "output_tokens": 1}}
    body = orjson.dumps(response)
    if stream:
        body = b"event: x\ndata: " + orjson.dumps({"type": "response.completed", "response": response}) + b"\n\n"
    with db.begin() as session:
        capture = rows.capture(session, "3?", endpoint=RESPONSES, stream=stream, response=body)
    with db.read() as session:
        found = captures.one(session, capture.id)
    message = {
        "role": "assistant",
        "content": "odd",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "find", "arguments": "{}"}}],
    }
    assert found.teacher is not None
    assert (found.teacher.message, found.teacher.finish_reason) == (message, "tool_calls")
    assert found.response == (response if not stream else {
        "message": message, "finish_reason": "tool_calls", "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        "error": None, "ended": True,
    })  # fmt: skip


def test_bodies_that_are_no_json_are_shown_as_text(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "4?", request={}, status=CaptureStatus.FAILED, response=b"<html>\xff</html>")
        capture.request = b"{broken"
    with db.read() as session:
        one = captures.one(session, capture.id)
    assert (one.request, one.response) == ("{broken", "<html>\ufffd</html>")
    assert orjson.dumps(one.model_dump(mode="json"))


def test_the_students_answer_is_the_latest_evaluations(db: Database) -> None:
    with db.begin() as session:
        task = rows.numbers(session, 0, 8)
        rows.trained(session, task, version=1)
        second = rows.trained(session, task, version=2)
    with db.read() as session:
        [line] = captures.listing(session, Filter(q="4?")).data
        one = captures.one(session, line.id)
    assert one.teacher is not None
    assert one.student is not None
    assert one.teacher.message == {"role": "assistant", "content": "even"}
    assert one.student.message == {"role": "assistant", "content": "odd"}
    assert (one.student.adapter_id, one.student.agrees, one.student.live) == (second.id, False, False)


def test_what_the_student_answered_live_is_its_answer_and_not_the_teachers(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "4?", served_by=Server.STUDENT, adapter_id="a@v1")
    with db.read() as session:
        one = captures.one(session, capture.id)
    assert one.teacher is None
    assert one.student is not None
    assert (one.student.adapter_id, one.student.live) == ("a@v1", True)


def test_an_unknown_capture_is_told(db: Database) -> None:
    with db.read() as session, pytest.raises(NotFound, match="stillroom captures"):
        captures.one(session, "cap_nothing")


def test_packed_captures_are_found_shown_and_listed_as_any_other(db: Database) -> None:
    exchanges = [rows.exchange(f"Is {n} odd, ÄRGER?", f"odd {n}", rows.asked(f"Is {n} odd, ÄRGER?"), n + 1, {}) for n in range(40)]
    with db.begin() as session:
        tasks.ensure(session, tasks.identify(rows.asked("")))
        session.flush()
        written.write(session, exchanges, Packer())
        plain = rows.capture(session, "not packed, ärger", "even")
        session.add_all(rows.paired(each, Split.TRAIN) for each in exchanges)
    with db.read() as session:
        assert [line.prompt for line in captures.listing(session, Filter(q="is 17 ODD")).data] == ["Is 17 odd, ÄRGER?"]
        first = captures.listing(session, Filter(q="ärger"), limit=3)
        assert [line.id for line in first.data] == [plain.id, exchanges[0].id, exchanges[1].id]
        rest = captures.listing(session, Filter(q="ärger"), after=first.data[-1].id)
        assert ([line.id for line in rest.data], rest.has_more) == ([each.id for each in exchanges[2:]], False)
        assert [line.prompt for line in pairs.listing(session, pairs.Filter(q="odd 39")).data] == ["Is 39 odd, ÄRGER?"]
        one = captures.one(session, exchanges[5].id)
        assert (one.request, one.response, one.answer) == (rows.asked("Is 5 odd, ÄRGER?"), rows.said("odd 5"), "odd 5")
        assert reviews.find(session, exchanges[5].id).request == exchanges[5].request
