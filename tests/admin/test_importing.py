"""Recorded exchanges in: what is used, what is left out and why, and that the same is never there twice."""

import gzip
import io
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlmodel import func, select

from admin import exporting, importing, reviews
from admin.problems import Invalid
from store import policy
from store.session import Database
from store.states import CaptureStatus, Server, Split
from store.tables import AuditEvent, Capture, Pair, Task
from tests.admin import rows


def tuning(prompt: str, answer: str = "even", **more: Any) -> dict[str, Any]:
    """A line of OpenAI's fine-tuning format."""
    return {"messages": [*rows.asked(prompt)["messages"], {"role": "assistant", "content": answer}], **more}


def recording(prompt: str, answer: str = "even", **more: Any) -> dict[str, Any]:
    """A line of a recording."""
    return {"request": rows.asked(prompt), "response": rows.said(answer), **more}


def load(db: Database, *lines: Any, **options: Any) -> importing.Report:
    raw = [line if isinstance(line, bytes) else orjson.dumps(line) for line in lines]
    return importing.load(db, io.BytesIO(b"\n".join(raw)), source="file.jsonl", **options)


def stored(db: Database) -> list[Capture]:
    with db.read() as session:
        return sorted(session.exec(select(Capture)), key=lambda capture: capture.prompt_text)


def test_both_formats_become_captures_of_the_teacher(db: Database) -> None:
    report = load(db, tuning("1?", "odd"), recording("2?"), model="big")
    assert (report.imported, report.duplicates, report.failed) == (2, 0, 0)
    one, two = stored(db)
    for capture in (one, two):
        assert (capture.endpoint, capture.status, capture.served_by) == (
            "/v1/chat/completions", CaptureStatus.COMPLETE, Server.TEACHER,
        )  # fmt: skip
        assert (capture.http_status, capture.finish_reason, capture.model) == (200, "stop", "big")
        assert capture.meta == {"imported": "file.jsonl"}
    assert (one.prompt_text, one.answer_text) == ("1?", "odd")
    assert orjson.loads(two.request) == rows.asked("2?")
    assert one.task_id == two.task_id  # the model that was named stands in for the one that was not


def test_distill_makes_pairs_of_them(db: Database) -> None:
    from distill import pairs

    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    tools = {"tools": [{"type": "function", "function": {"name": "find"}}]}
    load(db, tuning("1?", "odd"), recording("2?"), {"messages": [{"role": "user", "content": "?"}, answer], **tools}, task="all")
    with db.begin() as session:
        task = session.exec(select(Task)).one()
        pairs.extract(session, task.id, policy.Policy())
        made = session.exec(select(Pair)).all()
    assert [pair.reason for pair in made] == ["", "", ""]
    assert [pair.tools for pair in made if pair.tools] == [tools["tools"]]


def test_lines_that_cannot_be_used_are_told_and_the_rest_is_imported(db: Database) -> None:
    report = load(
        db,
        tuning("1?"),
        b"",
        b"{broken",
        [1],
        {"prompt": "1?", "completion": "odd"},
        {"messages": [{"role": "user", "content": "1?"}]},
        {"messages": [{"role": "assistant", "content": "odd"}]},
        {"messages": []},
        {"messages": ["hello"]},
        tuning("1?", ""),
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no", "weight": 0}]},
        {"request": "x", "response": {}},
        {"request": rows.asked("1?")},
        recording("1?", meta={"http_status": 429}),
        {"request": rows.asked("1?"), "response": {"error": {"message": "overloaded"}}},
        {"request": rows.asked("1?"), "response_sse": 'data: {"choices":[]}\n\n'},
        {"request": rows.asked("1?", metadata={"task": "-"}), "response": rows.said("odd")},
        recording("2?"),
    )
    assert report.imported == 2
    assert {error.line: error.reason.split(":")[0][:40] for error in report.errors} == {
        3: "no JSON",
        4: 'no JSON object; a line is {"messages"',
        5: "neither `messages` nor `request`; a line",
        6: "the last message is not the assistant's",
        7: "there is an answer and no question",
        8: "`messages` is no list, or an empty one",
        9: "a message is no object with a `role`",
        10: "the answer is empty",
        11: "the answer has weight 0",
        12: "`request` is no object",
        13: "there is no `response`",
        14: "the teacher answered 429",
        15: "the answer is an error",
        16: "the recorded stream broke off before its",
        17: "metadata.task",
    }
    assert report.failed == 15


def test_the_same_line_is_imported_once(db: Database) -> None:
    assert load(db, tuning("1?"), tuning("1?"), tuning("2?")).duplicates == 1
    again = load(db, tuning("2?"), tuning("3?"))
    assert (again.imported, again.duplicates) == (1, 1)
    assert len(stored(db)) == 3


def test_two_imports_of_one_file_at_a_time_make_one(db: Database) -> None:
    lines = [tuning(f"{n}?") for n in range(200)]
    errors: list[Exception] = []
    reports: list[importing.Report] = []

    def run() -> None:
        try:
            reports.append(load(db, *lines))
        except Exception as error:  # noqa: BLE001 - the assertion shows it
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(stored(db)) == 200
    assert (sum(r.imported for r in reports), sum(r.duplicates for r in reports)) == (200, 400)
    assert sum(count for r in reports for count in r.tasks.values()) == 200


def test_many_lines_are_stored_in_batches(db: Database) -> None:
    report = load(db, *(tuning(f"{n}?") for n in range(1201)))
    with db.read() as session:
        assert session.exec(select(func.count()).select_from(Capture)).one() == report.imported == 1201


def test_lines_fall_into_the_tasks_their_requests_belong_to(db: Database) -> None:
    with db.begin() as session:
        live = rows.capture(session, "0?").task_id
    other = {"request": {"model": "big", "messages": [{"role": "user", "content": "hi"}]}, "response": rows.said("hello")}
    report = load(db, recording("1?"), other)
    assert len(report.tasks) == 2
    assert {capture.task_id for capture in stored(db)} >= {live}
    assert sum(capture.task_id == live for capture in stored(db)) == 2


def test_a_named_task_takes_all_lines_by_name_or_id(db: Database) -> None:
    assert load(db, tuning("1?"), recording("2?"), task="numbers").tasks == {"numbers": 2}
    [task_id] = {capture.task_id for capture in stored(db)}
    assert load(db, tuning("3?"), task=task_id).tasks == {"numbers": 1}
    assert len({capture.task_id for capture in stored(db)}) == 1


def test_a_name_that_is_none_is_refused_before_anything_is_read(db: Database) -> None:
    with pytest.raises(Invalid, match="begins with a letter"):
        load(db, tuning("1?"), task="-")
    assert stored(db) == []


def test_streams_and_their_metadata_are_kept(db: Database) -> None:
    request = rows.asked("1?", stream=True, metadata={"conversation": "c7"})
    load(db, {"request": request, "response_sse": rows.streamed("odd").decode()})
    [capture] = stored(db)
    assert capture.stream
    assert (capture.answer_text, capture.meta) == ("odd", {"conversation": "c7", "imported": "file.jsonl"})


def test_nul_characters_are_left_out_of_the_text_and_kept_in_the_bytes(db: Database) -> None:
    metadata = {"note": "a\0b"}
    odd = recording("1\0?", "o\0dd")
    odd["request"]["metadata"] = metadata
    report = load(db, odd, tuning("2 \\u0000 ?", "six characters"))
    assert report.imported == 2
    one, two = stored(db)
    assert (one.prompt_text, one.answer_text, one.meta["note"]) == ("1?", "odd", "ab")
    assert orjson.loads(one.request)["metadata"] == metadata
    assert two.prompt_text == "2 \\u0000 ?"


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    "odd",
    [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a", "tool_calls": 7}]},
        b'{"messages":[{"role":"user","content":"?"},{"role":"assistant","content":"a"}],"tools":' + deep(300) + b"}",
        b'{"request":{"messages":[{"role":"user","content":"?"}],"metadata":' + deep(300) + b'},"response":{}}',
        b'{"request":{"messages":[{"role":"user","content":"?"}]},"response":' + deep(300) + b"}",
        {"request": {"messages": [{"role": "user", "content": "?"}], "model": {}}, "response": {"choices": [{"message": 5}]}},
    ],
)
def test_one_odd_line_does_not_end_the_import(db: Database, odd: Any) -> None:
    report = load(db, tuning("1?"), odd, tuning("2?"))
    assert (report.imported, [error.line for error in report.errors]) == (2, [2])


def test_counts_of_tokens_are_kept_within_what_a_database_holds(db: Database) -> None:
    odd = recording("1?")
    odd["response"]["usage"] = {"prompt_tokens": 2**63, "completion_tokens": -5}
    assert load(db, odd, recording("2?")).imported == 2
    assert (stored(db)[0].prompt_tokens, stored(db)[0].completion_tokens) == (2**31 - 1, 0)


def test_imported_captures_sort_before_live_ones_so_that_the_gate_judges_on_live_traffic(db: Database) -> None:
    with db.begin() as session:
        live = rows.capture(session, "0?")
    load(db, recording("1?"), tuning("2?"))
    assert max(capture.id for capture in stored(db)) == live.id
    assert {len(capture.id) for capture in stored(db) if capture.id != live.id} == {40}


def test_who_asked_is_kept_as_the_proxy_keeps_it(db: Database) -> None:
    odd = recording("1?")
    odd["request"]["user"] = "ann"
    load(db, odd)
    assert stored(db)[0].meta == {"user": "ann", "imported": "file.jsonl"}


def test_gzip_and_a_byte_order_mark_are_read(db: Database) -> None:
    packed = gzip.compress(b"\xef\xbb\xbf" + orjson.dumps(tuning("1?")) + b"\r\n" + orjson.dumps(tuning("2?")) + b"\r\n")
    assert importing.load(db, io.BytesIO(packed), source="x").imported == 2


def test_a_gzip_file_that_is_cut_off_gives_what_it_has(db: Database) -> None:
    lines = b"".join(orjson.dumps(tuning(f"{n * 7919}?")) + b"\n" for n in range(2000))
    report = importing.load(db, io.BytesIO(gzip.compress(lines)[:-2000]), source="x")
    assert 0 < report.imported < 2000
    assert "cut off" in report.errors[-1].reason


def test_a_line_without_end_is_passed_over(db: Database) -> None:
    report = load(db, b"x" * (importing.LINE_BYTES + 5), tuning("1?"))
    assert [(error.line, error.reason) for error in report.errors] == [(1, "longer than 16 MB")]
    assert report.imported == 1


def test_a_first_line_with_a_byte_order_mark_that_is_too_long_is_one_line(db: Database) -> None:
    report = load(db, importing.BOM + b"x" * (importing.LINE_BYTES + 1), b"broken", tuning("1?"))
    assert [error.line for error in report.errors] == [1, 2]


def test_a_last_line_of_the_greatest_length_needs_no_line_end(db: Database) -> None:
    line = orjson.dumps(tuning("1?"))
    report = load(db, line[:-1] + b" " * (importing.LINE_BYTES - len(line)) + line[-1:])
    assert (report.imported, report.errors) == (1, [])


def test_more_errors_than_a_person_reads_are_counted(db: Database) -> None:
    report = load(db, *[b"x"] * (importing.REPORTED + 5))
    assert (report.failed, len(report.errors)) == (importing.REPORTED + 5, importing.REPORTED)


def test_an_import_is_in_the_audit_log(db: Database) -> None:
    load(db, tuning("1?"), b"x", by="me")
    with db.read() as session:
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "import")).one()
    assert (event.actor, event.detail) == ("me", {"source": "file.jsonl", "imported": 1, "duplicates": 0, "failed": 1})


def test_what_was_exported_can_be_imported(db: Database, tmp_path: Path) -> None:
    with db.begin() as session:
        task = rows.numbers(session, 0, 8)
        _, wrong, bad = (
            session.get_one(Capture, pair.capture_id) for pair in session.exec(select(Pair).order_by("created_at")).all()[:3]
        )
        reviews.correct(session, wrong.id, "a correction", by="me")
        reviews.reject(session, bad.id, by="me")
    exported = b"".join(exporting.lines(db, task.id))
    report = importing.load(db, io.BytesIO(exported), source="export", task="copy")
    assert (report.imported, report.failed) == (7, 0)
    copies = [capture for capture in stored(db) if capture.meta]
    assert "a correction" in {capture.answer_text for capture in copies}
    assert bad.prompt_text not in {capture.prompt_text for capture in copies}


def test_an_export_has_the_split_it_is_asked_for(db: Database) -> None:
    with db.begin() as session:
        task = rows.numbers(session, 0, 8)
        rows.pair(session, rows.capture(session, "excluded"), None)
    assert len(list(exporting.lines(db, task.id))) == 8
    assert len(list(exporting.lines(db, task.id, Split.HOLDOUT))) == 2


def test_an_exported_line_is_what_openai_takes(db: Database) -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    with db.begin() as session:
        capture = rows.capture(session, "1?", "odd", request={"tools": tools})
        rows.pair(session, capture)
    [line] = exporting.lines(db, capture.task_id)
    answer = {"role": "assistant", "content": "odd"}
    assert orjson.loads(line) == {"messages": [*rows.asked("1?")["messages"], answer], "tools": tools}


def test_an_export_of_many_pairs_misses_none(db: Database) -> None:
    with db.begin() as session:
        task = rows.numbers(session, 0, exporting.PAGE + 1)
    assert len(set(exporting.lines(db, task.id))) == exporting.PAGE + 1
