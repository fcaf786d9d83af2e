"""Which captures become pairs, and on which side of the split."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from sqlmodel import select

from distill import pairs
from store import captures, tasks
from store.chat import RESPONSES, TEXT
from store.packing import Packer
from store.policy import Policy
from store.session import Database
from store.states import CaptureStatus, PairStatus, ReviewKind, Server, Split
from store.tables import Capture, Pair, Review
from tests.distill.conftest import SYSTEM, exchange
from tests.distill.test_sketches import prose

POLICY = Policy()


def test_a_complete_answer_of_the_teacher_is_a_pair() -> None:
    pair = pairs.judge(exchange("4", "even"), POLICY)
    assert (pair.status, pair.completion) == (PairStatus.READY, {"role": "assistant", "content": "even"})
    assert [m["role"] for m in pair.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (exchange("4", "eve", finish_reason="length"), "did not finish: length"),
        (exchange("4", "", finish_reason="content_filter"), "did not finish: content_filter"),
        (exchange("4", None, message={"refusal": "I will not say."}), "refused"),
        (exchange("4", ""), "empty"),
        (exchange("4", "even", http_status=429), "answered 429"),
        (exchange("4", "even", response=b'{"error": {"message": "no"}}'), "error"),
        (exchange("4", "even", response=b"<html>"), "error"),
        (exchange("4", "even", stream=True, response=b'data: {"choices":[{"delta":{"content":"ev"}}]}\n\n'), "ended early"),
        (exchange("4", "even", request={"n": 2}), "more than one"),
        (exchange("4", "even", request={"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "not text"),
        (exchange("4", "even", request={"messages": []}), "no messages"),
        (exchange("4", "even", request={}, **{"response": b"[]"}), "error"),
    ],
)
def test_what_is_not_fit_is_left_out_with_its_reason(capture: Capture, reason: str) -> None:
    pair = pairs.judge(capture, POLICY)
    assert pair.status == PairStatus.EXCLUDED
    assert reason in pair.reason
    assert pair.split is None


def test_a_streamed_answer_makes_the_same_pair_as_a_whole_one() -> None:
    events = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": "ev"}}]}]
    events += [{"choices": [{"index": 0, "delta": {"content": "en"}, "finish_reason": "stop"}]}]
    body = b"".join(b"data: " + orjson.dumps(e) + b"\n\n" for e in events) + b"data: [DONE]\n\n"
    streamed, whole = (pairs.judge(c, POLICY) for c in (exchange("4", "", stream=True, response=body), exchange("4", "even")))
    assert streamed.content_hash == whole.content_hash


CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"}


def answered(*output: dict[str, Any], request: dict[str, Any] | None = None, status: str = "completed") -> Capture:
    """A capture of /v1/responses; the answer is "even" unless it is told otherwise."""
    asked = {"model": "big", "instructions": SYSTEM["content"], "input": "4", **(request or {})}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "even"}]}
    response = orjson.dumps({"object": "response", "status": status, "output": output or [said]})
    return at(RESPONSES, asked, response)


def at(endpoint: str, asked: dict[str, Any], response: bytes) -> Capture:
    capture = exchange("", "", endpoint=endpoint, response=response, task_id=tasks.identify(asked, endpoint=endpoint).id)
    capture.request = orjson.dumps(asked)
    return capture


def test_the_same_question_and_answer_make_the_same_pair_at_each_endpoint() -> None:
    chat, responses = pairs.judge(exchange("4", "even"), POLICY), pairs.judge(answered(), POLICY)
    same = ("status", "task_id", "messages", "tools", "completion", "content_hash", "prompt_hash", "conversation")
    assert {name: getattr(chat, name) for name in same} == {name: getattr(responses, name) for name in same}
    alone = exchange("4", "even", request={"messages": [{"role": "user", "content": "4"}]})
    text = at(TEXT, {"model": "big", "prompt": "4"}, b'{"choices": [{"index": 0, "text": "even", "finish_reason": "stop"}]}')
    one, two = pairs.judge(alone, POLICY), pairs.judge(text, POLICY)
    assert (one.content_hash, one.conversation, two.status) == (two.content_hash, two.conversation, PairStatus.READY)


def test_turns_of_one_responses_conversation_fall_on_one_side_whatever_their_form() -> None:
    said = {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "even"}]}
    first = {"role": "user", "content": [{"type": "input_text", "text": "4"}]}
    later = answered(request={"input": [first, {"type": "reasoning", "summary": []}, said, {"role": "user", "content": "5"}]})
    assert pairs.judge(later, POLICY).conversation == pairs.judge(answered(), POLICY).conversation


def test_a_tool_called_in_a_response_is_a_pair() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "even"}
    pair = pairs.judge(answered(CALL, request={"tools": [tool], "input": [{"role": "user", "content": "4"}, CALL, result]}), POLICY)
    assert (pair.status, pair.tools) == (
        PairStatus.READY,
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    )
    assert pair.completion["tool_calls"] == pair.messages[2]["tool_calls"]
    assert pair.completion["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (answered(request={"previous_response_id": "resp_1"}), "its previous_response_id cannot be shown"),
        (answered(request={"tools": [{"type": "web_search"}]}), "its tools cannot be shown"),
        (answered(request={"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "its input cannot be shown"),
        (answered(status="incomplete"), "did not finish: length"),
        (answered(status="queued"), "did not finish: queued"),
        (answered(status="failed"), "error"),
        (answered({"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}), "refused"),
        (answered({"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"}), "not of a function"),
        (answered({"type": "reasoning", "summary": []}), "empty"),
    ],
)
def test_what_of_the_responses_api_no_student_can_learn_is_left_out(capture: Capture, reason: str) -> None:
    pair = pairs.judge(capture, POLICY)
    assert pair.status == PairStatus.EXCLUDED
    assert reason in pair.reason


def test_captures_of_every_endpoint_are_looked_at(db: Database, put: Callable[..., str]) -> None:
    chat, responses = exchange("6", "even"), answered()
    assert responses.task_id == chat.task_id
    passed_through = exchange("8", "even", endpoint="/v1/embeddings")
    found = made(db, put(chat, responses, passed_through))
    assert {pair.capture_id for pair in found if pair.status == PairStatus.READY} == {chat.id, responses.id}


def test_exact_duplicates_count_once_and_nothing_is_looked_at_twice(db: Database, put: Callable[..., str]) -> None:
    task = put(exchange("4", "even"), exchange("4", "even"), exchange("5", "odd"))
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 3
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 0
        found = session.exec(select(Pair)).all()
    assert sorted(p.status for p in found) == [PairStatus.EXCLUDED, PairStatus.READY, PairStatus.READY]
    assert [p.reason for p in found if p.status == PairStatus.EXCLUDED] == ["exact duplicate of an earlier pair"]


def test_answers_of_the_student_and_unfinished_ones_are_never_looked_at(db: Database, put: Callable[..., str]) -> None:
    task = put(exchange("4", "even", served_by=Server.STUDENT), exchange("5", "odd", status=CaptureStatus.INCOMPLETE))
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 0


def test_turns_of_one_conversation_fall_on_one_side(db: Database, put: Callable[..., str]) -> None:
    turns = []
    for number in range(200):
        first = [{"role": "user", "content": f"{prose(random.Random(number), 10)}: conversation {number}"}]
        longer = [*first, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "More."}]
        turns += [exchange("", "ok", request={"messages": messages}) for messages in (first, longer)]
    sides: dict[str, list[Split | None]] = {}
    for pair in made(db, put(*turns)):
        sides.setdefault(pair.conversation, []).append(pair.split)
    assert all(len(side) == 2 and side[0] == side[1] for side in sides.values())
    assert Counter(side[0] for side in sides.values()) == {Split.TRAIN: 150, Split.HOLDOUT: 40, Split.VALIDATION: 10}


def test_a_named_conversation_wins() -> None:
    one, two = (pairs.judge(exchange(p, "ok", meta={"conversation": "c-1"}), POLICY) for p in ("a", "b"))
    assert one.conversation == two.conversation


def made(db: Database, task: str, policy: Policy = POLICY) -> list[Pair]:
    """All pairs of the task, once there is nothing left to look at, by capture."""
    with db.begin() as session:
        while pairs.extract(session, task, policy):
            pass
        return list(session.exec(select(Pair).order_by(Pair.capture_id)).all())


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (exchange("4", None, message={"tool_calls": [{"type": "custom", "custom": {"name": "f"}}]}), "not of a function"),
        (exchange("4", None, message={"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}), "arguments are not text"),
        (exchange("4", "even", request={"tools": [{"type": "custom", "custom": {"name": "f"}}]}), "a tool is no function"),
        (exchange("4", "even", request={"tools": {"f": 1}}), "a tool is no function"),
        (exchange("4", "even", request={"messages": [{"content": "4"}]}), "no role"),
        (exchange("4", "even", request={"messages": [{"role": "user", "content": 4}]}), "not text"),
        (exchange("4", "even", request={"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}), "not of a function"),
        (exchange("4", "even", request={"response_format": "json"}), "no object"),
        (exchange("4", "even", served_by=Server.STUDENT), "not a whole answer of the teacher"),
    ],
)
def test_shapes_that_no_template_can_render_are_left_out(capture: Capture, reason: str) -> None:
    pair = pairs.judge(capture, POLICY)
    assert pair.status == PairStatus.EXCLUDED
    assert reason in pair.reason


def test_json_nested_deeper_than_can_be_written_is_left_out_and_stops_nobody(db: Database) -> None:
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    odd, plain = exchange("4", "even"), exchange("5", "odd")
    odd.request = odd.request[:-1] + b',"tools":[{"type":"function","function":{"name":"f","parameters":' + deep + b"}}]}"
    with db.begin() as session:
        session.add_all([odd, plain])
    found = made(db, plain.task_id)
    assert {pair.reason for pair in found} == {"", "its JSON is nested too deeply"}


def test_random_ids_of_tool_calls_make_no_difference() -> None:
    def called(number: int) -> Pair:
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "5"}
        history = [{"role": "assistant", "content": None, "tool_calls": [call]}, result]
        request = {"messages": [{"role": "user", "content": "4"}, *history]}
        return pairs.judge(exchange("", None, request=request, message={"tool_calls": [call]}, finish_reason="tool_calls"), POLICY)

    one, two = called(1), called(2)
    assert one.completion["tool_calls"][0]["id"] == "call_1"
    assert (one.content_hash, one.prompt_hash) == (two.content_hash, two.prompt_hash)


def test_no_prompt_is_on_both_sides_whatever_its_conversation_is_called(db: Database, put: Callable[..., str]) -> None:
    captures = [exchange(f"Hello {n % 5}", f"answer {n}", meta={"conversation": f"c-{n}"}) for n in range(100)]
    found = made(db, put(*captures))
    sides: dict[str, set[Split | None]] = {}
    for pair in found:
        if pair.status == PairStatus.READY:
            sides.setdefault(pair.prompt_hash, set()).add(pair.split)
    assert len(sides) == 5
    assert all(len(side) == 1 for side in sides.values())
    assert {pair.reason for pair in found} == {""}
    assert len({pair.cluster for pair in found}) == 5


def test_a_conversation_stays_on_its_side_when_the_policy_changes(db: Database, put: Callable[..., str]) -> None:
    first = [[{"role": "user", "content": f"Conversation {n}"}] for n in range(60)]
    task = put(*(exchange("", "Yes?", request={"messages": m}) for m in first))
    before = {pair.conversation: pair.split for pair in made(db, task)}
    more = [{"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "More."}]
    put(*(exchange("", "No.", request={"messages": [*m, *more]}) for m in first))
    found = made(db, task, Policy(holdout=0.9))
    assert len(found) == 120
    assert {(pair.conversation, pair.split) for pair in found} == set(before.items())


def test_a_correction_makes_a_pair_of_a_capture_that_was_none(db: Database, put: Callable[..., str]) -> None:
    student, cut = exchange("4", "odd", served_by=Server.STUDENT), exchange("5", "od", finish_reason="length")
    task = put(student, cut, exchange("6", "even"))
    assert {pair.status for pair in made(db, task)} == {PairStatus.EXCLUDED, PairStatus.READY}
    with db.begin() as session:
        for capture, right in ((student, "even"), (cut, "odd")):
            correction = {"role": "assistant", "content": right}
            session.add(Review(capture_id=capture.id, kind=ReviewKind.CORRECT, correction=correction))
    found = {pair.capture_id: pair for pair in made(db, task)}
    assert {pair.status for pair in found.values()} == {PairStatus.READY}
    assert (found[student.id].completion["content"], found[cut.id].completion["content"]) == ("even", "odd")
    assert made(db, task) == list(found.values())


def test_a_correction_that_was_taken_back_makes_no_pair(db: Database, put: Callable[..., str]) -> None:
    student = exchange("4", "odd", served_by=Server.STUDENT)
    task = put(student)
    with db.begin() as session:
        session.add(Review(capture_id=student.id, kind=ReviewKind.CORRECT, correction={"role": "assistant", "content": "even"}))
    with db.begin() as session:
        session.add(Review(capture_id=student.id, kind=ReviewKind.REJECT))
    assert made(db, task) == []


def test_packed_captures_make_the_same_pairs(db: Database) -> None:
    texts = [f"is {n} odd or even, and why do you say so?" for n in range(40)]
    plain = [pairs.judge(exchange(text, "odd"), POLICY) for text in texts]
    rows = [exchange(text, "odd") for text in texts]
    with db.begin() as session:
        tasks.ensure(session, tasks.identify(orjson.loads(rows[0].request)))
        session.flush()
        captures.write(session, rows, Packer())
    found = made(db, rows[0].task_id)
    assert {pair.content_hash for pair in found} == {pair.content_hash for pair in plain}
    with db.read() as session:
        assert all(capture.packed for capture in session.exec(select(Capture)))
