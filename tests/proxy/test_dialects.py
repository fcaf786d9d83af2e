"""A student asked at each endpoint through Students, at a real server: what it is asked, and what becomes of its answer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai
import orjson
import pytest
from openai.types import Completion
from openai.types.responses import Response, ResponseCompletedEvent

from proxy.breaker import FAILURES, Breaker
from proxy.student import Died, NoAnswer, Students
from store.chat import CHAT, RESPONSES, TEXT
from tests.proxy.conftest import ADAPTER
from tests.proxy.upstream import Reply, Upstream, completion, events, json, stream

TEXT_ASKED = {"model": "big-1", "prompt": "hello", "max_tokens": 9}
ASKED = {"model": "big-1", "instructions": "Sort the ticket.", "input": "hello"}
JSON_ASKED = {**ASKED, "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}
CALL = {"id": "t-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALL_ITEM = {"type": "function_call", "id": "fc_1", "call_id": "t-1", "name": "f", "arguments": "{}", "status": "completed"}


@dataclass
class Got:
    """What a client would have got."""

    body: bytes = b""
    why: str | None = None  #: it got nothing, and the teacher is asked
    died: str | None = None  #: it got a part
    breaker: Breaker = field(default_factory=Breaker)

    @property
    def blamed(self) -> bool:
        """Whether it counts as a failure of the engine: with so many more it is left alone."""
        for _ in range(FAILURES - 1):
            self.breaker.fail()
        return self.breaker.state == "open"

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [orjson.loads(line[6:]) for line in self.body.splitlines() if line.startswith(b"data: {")]


Ask = Callable[[str, dict[str, Any], Reply], Got]


@pytest.fixture
def ask(student: Upstream) -> Ask:
    """Puts a request to the student, which answers with the reply."""

    async def asking(endpoint: str, request: dict[str, Any], got: Got) -> None:
        students = Students(timeout=2.0)
        try:
            answer = await students.ask([student.url], ADAPTER, request, 512, endpoint)
            async for chunk in answer:
                got.body += chunk
            await answer.close()
        except NoAnswer as why:
            got.why = str(why)
        except Died as died:
            got.died = str(died)
        finally:
            got.breaker = students.breakers[student.url]
            await students.close()

    def ask(endpoint: str, request: dict[str, Any], reply: Reply) -> Got:
        student.reply = reply
        got = Got()
        asyncio.run(asking(endpoint, request, got))
        return got

    return ask


def item(text: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part] if text else []}


def response(*output: dict[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    """A response as vLLM says it."""
    usage = {
        "input_tokens": 3, "output_tokens": 2, "total_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": ADAPTER, "tools": [], "tool_choice": "auto"}
    return {**head, "parallel_tool_calls": True, "status": status, "output": list(output), "usage": usage, **more}


def happening(*words: str, last: dict[str, Any] | None = None) -> list[bytes]:
    """The events of a Responses stream as vLLM sends them; `last` is the final response, else all the words and completed."""
    started = response(status="in_progress", usage=None)
    happened: list[dict[str, Any]] = [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item(""), "status": "in_progress"}},
        {
            "type": "response.content_part.added",
            "output_index": 0,
            "content_index": 0,
            "part": item("x")["content"][0] | {"text": ""},
        },
        *({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": word} for word in words),
        {"type": "response.output_item.done", "output_index": 0, "item": item("".join(words))},
        {"type": "response.completed", "response": last or response(item("".join(words)))},
    ]
    return [named(each, number) for number, each in enumerate(happened)]


def named(event: dict[str, Any], number: int) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps({**event, "sequence_number": number}))


def test_a_response_comes_from_vllms_own_endpoint_under_the_clients_model(ask: Ask, student: Upstream) -> None:
    got = ask(RESPONSES, {**ASKED, "temperature": 1.5, "max_output_tokens": 9_000}, json(response(item("lost card"))))
    assert got.json == response(item("lost card")) | {"model": "big-1"}
    parsed = Response.model_validate(got.json)
    assert (parsed.output_text, parsed.model) == ("lost card", "big-1")
    asked = student.seen[0]
    assert asked.target == "/v1/responses"
    assert asked.json == {
        "model": ADAPTER, "instructions": "Sort the ticket.", "input": [{"role": "user", "content": "hello"}],
        "max_output_tokens": 512, "temperature": 0.0, "store": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "body", "why"),
    [
        (ASKED, response(CALL_ITEM), None),
        (JSON_ASKED, response(item('{"a": 1}')), None),
        (JSON_ASKED, response(CALL_ITEM), None),
        (JSON_ASKED, response(item('{"a": 1')), "is not the JSON that response_format asks for"),
        (ASKED, response(item("cut sho"), status="incomplete"), "its finish_reason is length"),
        (ASKED, response(), "its answer is empty"),
        (ASKED, response(item("")), "its answer is empty"),
    ],
)
def test_a_response_is_looked_at_before_it_is_sent(
    ask: Ask, request_: dict[str, Any], body: dict[str, Any], why: str | None
) -> None:
    got = ask(RESPONSES, request_, json(body))
    assert (got.why is None) == (why is None)
    assert why is None or why in str(got.why)
    assert not got.blamed


@pytest.mark.parametrize(
    "reply",
    [
        json(response(status="failed", error={"message": "out of memory"})),
        json({"error": {"message": "out of memory"}}),
        json(b"<html>"),
        json({"error": "x"}, 500),
        stream(happening("half")[:1], after="cut"),
        stream(happening("half")[:3]),
        stream([b'data: {"error": {"message": "out of memory"}}\n\n']),
        stream([*happening("half")[:2], named({"type": "error", "message": "out of memory"}, 2)]),
        stream([*happening("half")[:2], named({"type": "response.failed", "response": response(status="failed")}, 2)]),
        stream([b"data: []\n\n"]),
        stream([b"data: {\n\n"]),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_a_student_that_fails_before_its_first_word_is_not_noticed(ask: Ask, reply: Reply, streamed: bool) -> None:
    got = ask(RESPONSES, {**ASKED, "stream": streamed}, reply)
    assert got.why
    assert got.why.startswith("student: ")
    assert got.body == b""
    assert got.blamed


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_responses_stream_keeps_its_names_and_numbers(ask: Ask, size: int) -> None:
    sent = b"".join(happening("Grü", "ße"))
    got = ask(RESPONSES, {**ASKED, "stream": True}, stream([sent[i : i + size] for i in range(0, len(sent), size)]))
    assert got.body == sent.replace(ADAPTER.encode(), b"big-1")
    assert [event["sequence_number"] for event in got.events] == list(range(8))
    assert {event["response"]["model"] for event in got.events if "response" in event} == {"big-1"}
    last = ResponseCompletedEvent.model_validate(got.events[-1])
    assert last.response.output_text == "Grüße"
    assert not got.blamed


def test_a_function_call_is_a_first_word_too(ask: Ask) -> None:
    started, done = happening()[0], {"type": "response.output_item.done", "output_index": 0, "item": CALL_ITEM}
    arguments = {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "{}"}
    end = named({"type": "response.completed", "response": response(CALL_ITEM)}, 3)
    for first in (done, arguments):
        got = ask(RESPONSES, {**ASKED, "stream": True}, stream([started, named(first, 1), end]))
        assert got.events[-1]["response"]["output"] == [CALL_ITEM]
        assert got.why is None


def test_a_responses_stream_that_is_cut_short_says_so(ask: Ask) -> None:
    last = response(item("half"), status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    got = ask(RESPONSES, {**ASKED, "stream": True}, stream(happening("half", last=last)))
    assert b"event: response.incomplete\ndata: " in got.body
    assert b"response.completed" not in got.body
    assert got.events[-1]["type"] == "response.incomplete"


def test_a_responses_stream_without_a_word_is_the_teachers(ask: Ask) -> None:
    got = ask(RESPONSES, {**ASKED, "stream": True}, stream(happening()))
    assert (got.why, got.body) == ("student: its answer is empty", b"")
    assert not got.blamed


@pytest.mark.parametrize(
    ("endpoint", "whole"), [(RESPONSES, happening("half", "way")), (TEXT, events("half", "way")), (CHAT, events("half", "way"))]
)
@pytest.mark.parametrize("after", ["end", "cut"])
def test_a_stream_that_ends_without_its_last_event_has_died(ask: Ask, endpoint: str, whole: list[bytes], after: str) -> None:
    asked: dict[str, dict[str, Any]] = {CHAT: {"model": "big-1", "messages": []}, TEXT: TEXT_ASKED, RESPONSES: ASKED}
    got = ask(endpoint, {**asked[endpoint], "stream": True}, stream(whole[:-1], after=after))
    assert got.died
    assert b"half" in got.body
    assert got.blamed


def test_a_text_completion_is_a_chat_completion_in_other_words(ask: Ask, student: Upstream) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    got = ask(TEXT, {**TEXT_ASKED, "prompt": ["hello"]}, json(completion("from the student") | {"id": "chatcmpl-7"}))
    choice = {"index": 0, "text": "from the student", "logprobs": None, "finish_reason": "stop"}
    head = {"id": "cmpl-7", "object": "text_completion", "created": 1, "model": "big-1"}
    assert got.json == {**head, "choices": [choice], "usage": usage}
    Completion.model_validate(got.json)
    asked = student.seen[0]
    assert asked.target == "/v1/chat/completions"
    assert asked.json == {"model": ADAPTER, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9, "temperature": 0.0}


def test_a_text_completion_that_is_cut_short_or_no_text_is_the_teachers(ask: Ask) -> None:
    called = {"message": {"role": "assistant", "content": None, "tool_calls": [CALL]}}
    assert "its finish_reason is length" in str(ask(TEXT, TEXT_ASKED, json(completion("cu", finish_reason="length"))).why)
    assert "is not text" in str(ask(TEXT, TEXT_ASKED, json(completion("", **called, finish_reason="tool_calls"))).why)


def test_a_text_completions_stream_is_a_chat_stream_in_other_words(ask: Ask) -> None:
    usage = {
        "id": "chatcmpl-7",
        "created": 1,
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    *chunks, done = events("hel", "lo")
    reply = stream([*chunks, b"data: " + orjson.dumps(usage) + b"\n\n", done])
    plain = ask(TEXT, {**TEXT_ASKED, "stream": True}, reply)
    assert [event["choices"][0]["text"] for event in plain.events] == ["hel", "lo", ""]
    assert [event["choices"][0]["finish_reason"] for event in plain.events] == [None, None, "stop"]
    assert {(event["model"], event["object"], event["id"]) for event in plain.events} == {("big-1", "text_completion", "cmpl-c-1")}
    assert plain.body.endswith(b"\n\ndata: [DONE]\n\n")
    asked = ask(TEXT, {**TEXT_ASKED, "stream": True, "stream_options": {"include_usage": True}}, reply)
    assert (asked.events[-1]["choices"], asked.events[-1]["usage"]) == ([], usage["usage"])


def test_the_sdk_reads_a_students_stream(ask: Ask, student: Upstream) -> None:
    got = ask(RESPONSES, {**ASKED, "stream": True}, stream(happening("lost ", "card")))
    student.reply = stream([got.body])
    with (
        openai.OpenAI(base_url=f"{student.url}/v1", api_key="x", max_retries=0) as client,
        client.responses.stream(model="big-1", input="hello") as happened,
    ):
        kinds = [event.type for event in happened]
        assert happened.get_final_response().output_text == "lost card"
    assert kinds[-1] == "response.completed"
