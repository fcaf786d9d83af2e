"""From the spool to a row: each endpoint's exchanges in the same columns."""

from typing import Any

import orjson
import pytest

from proxy.journal import Logged
from proxy.rows import build
from proxy.spool import Record
from store import tasks
from store.chat import CHAT, RESPONSES, TEXT
from store.states import CaptureStatus
from tests.proxy.conftest import SYSTEM, chat
from tests.proxy.upstream import completion, events

OUTPUT = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}]
RESPONSE = {"object": "response", "status": "completed", "output": OUTPUT, "usage": {"input_tokens": 3, "output_tokens": 2}}
ASKED: dict[str, dict[str, Any]] = {
    CHAT: chat(),
    TEXT: {"model": "big-1", "prompt": "hello"},
    RESPONSES: {"model": "big-1", "instructions": SYSTEM["content"], "input": "hello"},
}
CHOICE = {"index": 0, "text": "hi", "finish_reason": "stop"}
ANSWERED = {
    CHAT: completion("hi"),
    TEXT: {"object": "text_completion", "choices": [CHOICE], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    RESPONSES: RESPONSE,
}
DELTA = {"type": "response.output_text.delta", "output_index": 0, "delta": "hi"}
STREAMED = {
    CHAT: events("hi"),
    TEXT: [b"data: " + orjson.dumps({"choices": [CHOICE]}) + b"\n\n", b"data: [DONE]\n\n"],
    RESPONSES: [b"data: " + orjson.dumps(each) + b"\n\n" for each in (DELTA, {"type": "response.completed", "response": RESPONSE})],
}


def logged(endpoint: str, answer: bytes, **end: Any) -> Logged:
    begin = {"kind": "begin", "id": "cap_1", "at": 1.0, "endpoint": endpoint, "task": None, "retry_count": 0}
    ended = {"kind": "end", "id": "cap_1", "status": "complete", "http_status": 200, **end}
    return Logged(Record(begin, orjson.dumps(ASKED[endpoint])), Record(ended, answer))


@pytest.mark.parametrize("endpoint", ASKED)
def test_an_exchange_is_read_as_its_endpoint_says_it(endpoint: str) -> None:
    identity, capture = build(logged(endpoint, orjson.dumps(ANSWERED[endpoint])))
    assert (capture.endpoint, capture.model, capture.prompt_text, capture.answer_text) == (endpoint, "big-1", "hello", "hi")
    assert (capture.finish_reason, capture.prompt_tokens, capture.completion_tokens) == ("stop", 3, 2)
    assert (capture.status, capture.error) == (CaptureStatus.COMPLETE, None)
    assert identity.id == tasks.identify(chat() if endpoint != TEXT else {"model": "big-1"}).id


@pytest.mark.parametrize("endpoint", ASKED)
def test_a_stream_that_lacks_its_end_is_incomplete(endpoint: str) -> None:
    whole = b"".join(STREAMED[endpoint])
    assert build(logged(endpoint, whole, stream=True))[1].status == CaptureStatus.COMPLETE
    half = STREAMED[endpoint][:1] if endpoint != TEXT else [whole.replace(b'"stop"', b"null")[: -len(b"data: [DONE]\n\n")]]
    _, capture = build(logged(endpoint, b"".join(half), stream=True))
    assert capture.status == CaptureStatus.INCOMPLETE
    assert build(logged(endpoint, b"", stream=True))[1].answer_text == ""
