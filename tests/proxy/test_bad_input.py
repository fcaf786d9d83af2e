"""Whatever a client sends is answered: never by a failure of the proxy's own, and never at the others' cost."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.completions import ENDPOINTS
from tests.proxy.conftest import chat, until
from tests.proxy.wire import Wire

PATHS = list(ENDPOINTS.values())
MB = 1_000_000

# What is in real requests, and what is not.
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "t-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REAL: list[dict[str, Any]] = [
    chat(),
    chat(stream=True, stream_options={"include_usage": True}, temperature=0.2, max_tokens=5, stop=["\n"], seed=1, user="u"),
    chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}}, metadata={"task": "t", "a": "b"}),
    chat(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}),
    {
        "model": "m",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "x"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "t-1", "content": "42"},
        ],
    },
    {"model": "m", "prompt": ["a", "b"], "n": 2, "best_of": 3, "logprobs": 5, "echo": True, "suffix": "s", "logit_bias": {"1": 1}},
    {"model": "m", "prompt": [1, 2, 3]},
    {
        "model": "m",
        "instructions": "be brief",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        ],
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
        "store": False,
        "previous_response_id": "r",
    },
    {"prompt": {"id": "p", "version": "1", "variables": {"a": "b"}}, "input": "x"},
]  # fmt: skip
KEYS = sorted({key for request in REAL for key in request} | {"role", "content", "type", "text", "function", "name", "id", "task"})

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["system", "user", "developer", "text", "function", "message", "\0", "{", "task/x", "", "🌍", "x" * 5000])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)
like_requests = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real request in which a place, or a few bytes, are something else."""
    request = orjson.loads(orjson.dumps(draw(st.sampled_from(REAL))))
    at: Any = request
    while True:
        key = draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        inside = at[key]
        if not isinstance(inside, dict | list) or not inside or draw(st.booleans()):
            break
        at = inside
    if draw(st.integers(0, 4)):
        at[key] = draw(values)
    else:
        del at[key]
    body = _written(request)
    if draw(st.booleans()):
        return body
    start = draw(st.integers(0, len(body)))
    return body[:start] + draw(st.binary(max_size=3) | st.sampled_from(ODD)) + body[start + draw(st.integers(0, 4)) :]


ODD = [
    b"NaN",
    b"-Infinity",
    b'"\\ud800"',
    b"\\u0000",
    b"1e999",
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
    b"[[[[",
    b'"model":1,',
    b"9" * 400,
]
bodies = (
    mutated()
    | like_requests.map(lambda request: _written({"model": "m", **request}))
    | like_requests.map(lambda request: _written(request))
    | values.map(lambda value: _written(value))
    | st.binary(max_size=60)
    | st.tuples(st.sampled_from(ODD), st.binary(max_size=5)).map(lambda two: b'{"model":"m","messages":' + b"".join(two) + b"}")
)


def _written(value: Any) -> bytes:
    import json as stdlib

    return stdlib.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


class Counted:
    """What has happened to the generated bodies."""

    def __init__(self) -> None:
        self.sent = self.passed = self.refused = 0


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


GIVEN = settings(
    max_examples=3400,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("path", PATHS)
def test_no_body_makes_the_proxy_fail_and_what_the_teacher_gets_is_what_was_sent(start, teacher, route, path):
    """3,400 bodies an endpoint. A task of the student's is among them: its requests are read for it, too."""
    proxy = start()
    route(proxy)
    for real in REAL:
        route(proxy, request=real, trust=False)
    counted = Counted()
    wire = Wire(proxy.url)

    @GIVEN
    @given(body=bodies)
    def send(body: bytes) -> None:
        seen = len(teacher.seen)
        said = wire.post(body, path, "Authorization: Bearer x").answer()
        counted.sent += 1
        if said.header("x-stillroom-served-by") is None:
            assert (said.status, said.whole) == (400, True), (body, said)
            assert said.code == "invalid_json", (body, said)
            assert len(teacher.seen) == seen
            counted.refused += 1
        else:
            assert said.status == 200, (body, said)
            assert [each.body for each in teacher.seen[seen:]] == [body]
            counted.passed += 1

    send()
    assert counted.sent >= 3400
    assert min(counted.passed, counted.refused) > 500, vars(counted)
    until(lambda: proxy.ready()["spool_bytes"] < 1000 or proxy.ready()["rejected"], 60)
    assert proxy.ready()["rejected"] == 0
    assert proxy.ready()["uncaptured"] == 0
    assert proxy.client.get("/healthz").status_code == 200


class Others(threading.Thread):
    """Other clients, one small completion after the other; remembers how long each waited."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.waited: list[float] = []
        self.failed: list[Any] = []
        self._wire, self._halt = Wire(url, 30), threading.Event()

    def run(self) -> None:
        while not self._halt.wait(0.005):
            began = time.monotonic()
            said = self._wire.post(orjson.dumps(chat()), PATHS[0], "X-Stillroom-Capture: off").answer()
            self.waited.append(time.monotonic() - began)
            if said.status != 200:
                self.failed.append(said)

    def stop(self) -> None:
        self._halt.set()
        self.join(30)
        self._wire.socket.close()


@contextmanager
def others(proxy: Any, most: float) -> Iterator[None]:
    """While this lasts other clients are served, and none waits longer than `most` seconds."""
    beside = Others(proxy.url)
    beside.start()
    until(lambda: len(beside.waited) > 5)
    yield
    beside.stop()
    slowest = sorted(beside.waited)[-3:]
    print(f"others: {len(beside.waited)} requests, the slowest in {[round(each * 1000) for each in slowest]} ms")
    assert not beside.failed
    assert slowest[-1] < most


def large(size: int) -> dict[str, bytes]:
    """Bodies of about so many bytes, each the worst of its kind."""
    return {
        "one text": b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * size + b'"}]}',
        "a system text": b'{"model":"m","messages":[{"role":"system","content":"' + b"word " * (size // 5) + b'"}]}',
        "escapes": b'{"model":"m","messages":[{"role":"user","content":"' + b"\\u00e9" * (size // 6) + b'"}]}',
        "many lists": b'{"model":"m","x":[' + b"[]," * (size // 3) + b"[]]}",
        "many objects": b'{"model":"m","x":[' + b'{"a":1},' * (size // 8) + b"{}]}",
        "many messages": b'{"model":"m","messages":[' + b'{"role":"system","content":"a"},' * (size // 32) + b"{}]}",
        "many tools": b'{"model":"m","tools":[' + b'{"b":1,"a":{}},' * (size // 15) + b"{}]}",
        "many numbers": b'{"model":"m","prompt":[' + b"1," * (size // 2) + b"1]}",
        "not quite JSON": b'{"model":"m","x":NaN,"y":[' + b"[]," * (size // 3) + b"[]]}",
        "not quite text": b'{"model":"m","x":"\\ud800","y":"' + b"x" * size + b'"}',
        "a long number": b'{"model":"m","x":' + b"9" * size + b"}",
        "no JSON": b"[" * size,
        "spaces": b'{"model":"m"' + b" " * size + b"}",
    }


@pytest.mark.parametrize("kind", large(1))
def test_a_large_body_is_answered_while_others_are(start, teacher, kind):
    proxy, body = start(max_body_bytes=100 * MB), large(99 * MB)[kind]
    with others(proxy, most=60), Wire(proxy.url, 60) as wire:
        began = time.monotonic()
        said = wire.post(body, PATHS[0], "X-Stillroom-Capture: off").answer()
        print(f"{kind}: {said.status} in {time.monotonic() - began:.2f} s")
        assert said.status in (200, 400, 413)
