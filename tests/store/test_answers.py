"""Reading answers: whole, streamed, strange."""

import json
from typing import Any

import orjson
import pytest

from store import answers
from store.chat import ENDPOINTS, RESPONSES, TEXT


def stream(*chunks: dict[str, Any] | str, end: str = "\n\n", done: bool = True) -> bytes:
    """An SSE body of these chunks, with these ends of events."""
    events = [f"data: {chunk if isinstance(chunk, str) else orjson.dumps(chunk).decode()}" for chunk in chunks]
    return end.join([*events, *(["data: [DONE]"] if done else []), ""]).encode()


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


DEEP: Any = orjson.loads(b"[" * 300 + b"]" * 300)
HELLO = [chunk(role="assistant", content=""), chunk(content="Hel"), chunk(content="lo"), chunk("stop")]


def test_a_body_is_read() -> None:
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
    read = answers.read(orjson.dumps(body), stream=False)
    assert read == answers.Answer({"role": "assistant", "content": "Hello"}, "stop", 9, 2)


def test_the_first_choice_is_the_one_with_index_0() -> None:
    choices = [{"index": 1, "message": {"content": "second"}}, {"index": 0, "message": {"content": "first"}}]
    assert answers.read_json(orjson.dumps({"choices": choices})).message == {"content": "first"}


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_a_streams_deltas_are_put_together(end: str) -> None:
    read = answers.read(stream(*HELLO, end=end), stream=True)
    assert read == answers.Answer({"role": "assistant", "content": "Hello"}, "stop")


def test_usage_comes_from_the_chunk_that_has_no_choices() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    read = answers.read_stream(stream(*HELLO, usage))
    assert (read.prompt_tokens, read.completion_tokens, read.message["content"]) == (9, 2, "Hello")


def test_usage_that_is_null_in_every_chunk_but_the_last_counts() -> None:
    chunks = [{**each, "usage": None} for each in HELLO]
    read = answers.read_stream(stream(*chunks, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}))
    assert read.completion_tokens == 2


def test_comments_and_named_events_are_passed_over() -> None:
    body = b": keep-alive\n\nevent: message\nid: 4\n" + stream(*HELLO)
    assert answers.read_stream(body).message["content"] == "Hello"


def test_several_data_lines_are_one_event() -> None:
    assert answers.events(b'data: {"a":\ndata: 1}\n\ndata:2\n\n') == [b'{"a":\n1}', b"2"]


def test_tool_calls_are_put_together_by_their_index() -> None:
    calls = [
        chunk(role="assistant", content=None),
        chunk(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": {"name": "find", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"order":'}}]),
        chunk(tool_calls=[{"index": 1, "id": "call_2", "type": "function", "function": {"name": "refund", "arguments": "{}"}}]),
        chunk(tool_calls=[{"index": 0, "id": None, "function": {"arguments": " 7}"}}]),
        chunk("tool_calls"),
    ]
    read = answers.read_stream(stream(*calls))
    assert read.finish_reason == "tool_calls"
    assert read.message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"order": 7}'}},
            {"id": "call_2", "type": "function", "function": {"name": "refund", "arguments": "{}"}},
        ],
    }


def test_a_refusal_is_kept_apart_from_content() -> None:
    read = answers.read_stream(stream(chunk(refusal="I can"), chunk(refusal="not."), chunk("stop")))
    assert read.message["refusal"] == "I cannot."
    assert answers.text_of(read.message) == "I cannot."


def test_a_stream_that_breaks_off_has_not_ended() -> None:
    read = answers.read_stream(stream(*HELLO[:2], done=False))
    assert (read.ended, read.finish_reason, read.message["content"]) == (False, None, "Hel")


def test_what_comes_after_the_end_is_not_read() -> None:
    assert answers.read_stream(stream(*HELLO) + stream(chunk(content="!"))).message["content"] == "Hello"


def test_an_error_in_a_stream_is_told() -> None:
    assert answers.read_stream(stream(HELLO[0], {"error": {"message": "overloaded"}})).error == "overloaded"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"message": "no such model", "code": 404}}', "no such model"),
        (b'{"error": "plain"}', "plain"),
        (b"[]", "the body is no JSON object"),
        (b'{"choices": []}', "the body has no message"),
        (b'{"choices": [{"message": "text"}]}', "the body has no message"),
    ],
)
def test_a_body_that_is_no_answer_says_why(body: bytes, error: str) -> None:
    assert answers.read_json(body).error == error


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b'{"choices": ['])
def test_a_body_that_is_no_json_has_not_ended(body: bytes) -> None:
    read = answers.read_json(body)
    assert read.error
    assert "no JSON" in read.error
    assert not read.ended


GARBAGE = [
    b"",
    b"data: ",
    b"data: {\n\n",
    b"data: null\n\ndata: 3\n\ndata: []\n\n",
    b"\xff\xfe\n\ndata: \xff\n\n",
    stream({"choices": "x"}, {"choices": [None, 4]}, {"choices": [{"delta": None}]}, {"choices": [{"delta": "x"}]}),
    stream(chunk(content=5, role=7, tool_calls=[None, 3, {"function": None}, {"index": "a", "function": {"name": 3}}])),
    stream(chunk(tool_calls=[{"function": {"arguments": "{}"}}]), {"usage": 3, "choices": [{"finish_reason": 3}]}),
    stream(chunk(tool_calls=5), chunk(tool_calls=True), chunk(tool_calls={"index": 0}), chunk(tool_calls="x")),
    b'data: {"error": ' + b"[" * 1000 + b"]" * 1000 + b"}\n\n",
    stream({"choices": [{"text": 3}]}, {"choices": [{"text": None, "finish_reason": []}]}),
    stream({"type": "response.output_text.delta", "output_index": "x", "delta": 3}, {"type": [], "response": 3}),
    stream(
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "role": "assistant", "content": 3}}
    ),
    stream({"type": "response.output_item.added", "item": {"type": "function_call", "arguments": 3}}),
    stream({"type": "response.function_call_arguments.delta", "output_index": -1, "delta": "{"}),
    stream({"type": "response.completed", "response": {"output": {"type": "message"}, "status": [], "incomplete_details": 3}}),
    stream({"type": "response.completed", "response": {"output": [{"type": "message", "role": "user", "content": "x"}, 3]}}),
    stream({"type": "response.failed", "response": {"error": 3, "usage": [], "output": [{"type": "function_call", "name": {}}]}}),
]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("body", GARBAGE)
def test_nothing_in_a_stream_raises(body: bytes, endpoint: str) -> None:
    assert answers.read(body, stream=True, endpoint=endpoint).message["role"] == "assistant"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("body", GARBAGE)
def test_nothing_in_a_body_raises(body: bytes, endpoint: str) -> None:
    assert answers.read(body, stream=False, endpoint=endpoint).error


def test_an_event_that_is_no_json_is_an_error_and_the_rest_is_read() -> None:
    read = answers.read_stream(stream(HELLO[0], HELLO[1], "{broken", HELLO[2], HELLO[3]))
    assert (read.message["content"], read.error) == ("Hello", "an event of the stream is no JSON")


def test_a_message_as_text_is_its_content_or_its_calls() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    assert answers.text_of({"content": "Hello"}) == "Hello"
    assert answers.text_of({"content": None, "tool_calls": [call]}) == '[{"name":"find","arguments":"{}"}]'
    assert answers.text_of({}) == ""


@pytest.mark.parametrize("calls", [5, True, "x", {"a": 1}, [None, 3], [{"function": {"arguments": DEEP}}]])
def test_nothing_in_a_messages_calls_raises(calls: Any) -> None:
    body = json.dumps({"choices": [{"message": {"content": None, "tool_calls": calls}}]}).encode()
    read = answers.read(body, stream=False)
    assert read.error is None
    assert answers.text_of(read.message) == ""


def test_an_end_with_more_or_fewer_spaces_is_an_end() -> None:
    for end in (b"data:[DONE]", b"data:   [DONE] "):
        read = answers.read_stream(stream(*HELLO, done=False) + end + b"\n\n")
        assert (read.ended, read.error) == (True, None)


def test_a_text_completion_is_a_message_too() -> None:
    body = {
        "object": "text_completion",
        "choices": [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
    read = answers.read(orjson.dumps(body), stream=False, endpoint=TEXT)
    assert read == answers.Answer({"role": "assistant", "content": "Hello"}, "stop", 9, 2)
    assert answers.read_json(b'{"choices": [{"index": 0}]}', TEXT).error == "the body has no message"


def test_a_text_completions_stream_is_put_together() -> None:
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in ("Hel", "lo")]
    chunks += [{"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}]
    chunks += [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}]
    read = answers.read(stream(*chunks), stream=True, endpoint=TEXT)
    assert read == answers.Answer({"role": "assistant", "content": "Hello"}, "length", 9, 2)
    assert not answers.read_stream(stream(*chunks, done=False), TEXT).ended


TEXT_ITEM = {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}
CALL_ITEM = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "find", "arguments": "{}", "status": "completed"}
FIND = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": "{}"}}


def response(*output: dict[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
    return {"object": "response", "status": status, "error": None, "output": list(output), "usage": usage, **more}


@pytest.mark.parametrize(
    ("body", "message", "finish"),
    [
        (response(TEXT_ITEM), {"role": "assistant", "content": "Hello"}, "stop"),
        (response({"type": "reasoning"}, TEXT_ITEM), {"role": "assistant", "content": "Hello"}, "stop"),
        (response(TEXT_ITEM, TEXT_ITEM), {"role": "assistant", "content": "HelloHello"}, "stop"),
        (response(CALL_ITEM), {"role": "assistant", "content": None, "tool_calls": [FIND]}, "tool_calls"),
        (response(TEXT_ITEM, CALL_ITEM), {"role": "assistant", "content": "Hello", "tool_calls": [FIND]}, "tool_calls"),
        (
            response(CALL_ITEM, TEXT_ITEM, TEXT_ITEM),
            {"role": "assistant", "content": "HelloHello", "tool_calls": [FIND]},
            "tool_calls",
        ),
        (
            response({**TEXT_ITEM, "content": [{"type": "refusal", "refusal": "No."}]}),
            {"role": "assistant", "content": None, "refusal": "No."},
            "stop",
        ),
        (response(TEXT_ITEM, status="incomplete"), {"role": "assistant", "content": "Hello"}, "length"),
        (
            response(TEXT_ITEM, status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            {"role": "assistant", "content": "Hello"},
            "length",
        ),
        (response(status="incomplete", incomplete_details={"reason": "content_filter"}), {}, "content_filter"),
        (response(status="queued"), {}, "queued"),
    ],
)
def test_a_response_is_one_message_and_its_status_the_finish_reason(
    body: dict[str, Any], message: dict[str, Any], finish: str
) -> None:
    read = answers.read(orjson.dumps(body), stream=False, endpoint=RESPONSES)
    assert read == answers.Answer(message, finish, 9, 2)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (response(status="failed", error={"code": "server_error", "message": "overloaded"}), "overloaded"),
        (response(status="failed"), "the response failed"),
        ({"error": {"message": "no such model"}}, "no such model"),
        ({"choices": []}, "the body has no output"),
    ],
)
def test_a_response_that_failed_says_why(body: dict[str, Any], error: str) -> None:
    assert answers.read_json(orjson.dumps(body), RESPONSES).error == error


def named(*happened: dict[str, Any]) -> bytes:
    """A Responses stream of these events."""
    lines = (f"event: {each['type']}\ndata: {orjson.dumps(each).decode()}\n\n" for each in happened)
    return "".join(lines).encode()


def delta(kind: str, text: str, index: int = 0) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "output_index": index, "delta": text}


CREATED = {"type": "response.created", "response": response(status="in_progress", usage=None)}
ADDED = {"type": "response.output_item.added", "output_index": 0, "item": {**TEXT_ITEM, "content": []}}
DELTAS: list[dict[str, Any]] = [CREATED, ADDED, delta("output_text", "Hel"), delta("output_text", "lo")]


def test_a_responses_stream_is_what_its_last_event_holds() -> None:
    completed = {"type": "response.completed", "response": response(TEXT_ITEM, CALL_ITEM)}
    read = answers.read(named(*DELTAS, completed, delta("output_text", "!")), stream=True, endpoint=RESPONSES)
    message = {"role": "assistant", "content": "Hello", "tool_calls": [FIND]}
    assert read == answers.Answer(message, "tool_calls", 9, 2)


def test_where_the_last_event_holds_no_output_the_deltas_are_put_together() -> None:
    read = answers.read_stream(named(*DELTAS, {"type": "response.completed", "response": response()}), RESPONSES)
    assert read == answers.Answer({"role": "assistant", "content": "Hello"}, "stop", 9, 2)


def test_a_responses_stream_without_its_last_event_has_not_ended() -> None:
    call = {**CALL_ITEM, "arguments": ""}
    more = [
        {"type": "response.output_item.done", "output_index": 0, "item": TEXT_ITEM},
        {"type": "response.output_item.added", "output_index": 1, "item": call},
        delta("function_call_arguments", '{"order"', 1),
        delta("function_call_arguments", ": 7", 1),
    ]
    read = answers.read_stream(named(*DELTAS, *more), RESPONSES)
    half = {**FIND, "function": {"name": "find", "arguments": '{"order": 7'}}
    assert read == answers.Answer({"role": "assistant", "content": "Hello", "tool_calls": [half]}, None, ended=False)


@pytest.mark.parametrize(
    ("last", "error", "ended"),
    [
        ({"type": "error", "code": "x", "message": "overloaded"}, "overloaded", False),
        ({"type": "error", "error": {"message": "overloaded"}}, "overloaded", False),
        ({"type": "response.failed", "response": response(status="failed", error={"message": "overloaded"})}, "overloaded", True),
        ({"type": "response.incomplete", "response": response(status="incomplete")}, None, True),
    ],
)
def test_how_a_responses_stream_went_wrong_is_told(last: dict[str, Any], error: str | None, ended: bool) -> None:
    read = answers.read_stream(named(*DELTAS, last), RESPONSES)
    assert (read.error, read.ended, read.message["content"]) == (error, ended, "Hello")
