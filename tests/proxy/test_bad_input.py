"""Whatever a client sends is answered: never by a failure of the proxy's own, and never at the others' cost."""

import gzip
import json as stdlib
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.completions import ENDPOINTS
from tests.proxy.conftest import chat, until
from tests.proxy.upstream import Exchange, completion, json, stream
from tests.proxy.wire import Wire, get, post, soon

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
    return stdlib.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


class Counted:
    """What has happened to the generated bodies."""

    def __init__(self) -> None:
        self.sent = self.passed = self.refused = 0


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


GIVEN = settings(
    max_examples=170,  # of 20 bodies each
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("path", PATHS)
def test_no_body_makes_the_proxy_fail_and_what_the_teacher_gets_is_what_was_sent(start, teacher, route, caplog, path):
    """3,400 bodies an endpoint. A task of the student's is among them: its requests are read for it, too."""
    proxy = start()
    route(proxy)
    for real in REAL:
        route(proxy, request=real, trust=False)
    counted = Counted()
    wire = Wire(proxy.url)

    @GIVEN
    @given(batch=st.lists(bodies, min_size=20, max_size=20))
    def send(batch: list[bytes]) -> None:
        for body in batch:
            ask(body)

    def ask(body: bytes) -> None:
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
            by_teacher = said.header("x-stillroom-served-by") == "teacher"
            assert [each.body for each in teacher.seen[seen:]] == [body] * by_teacher, body
            counted.passed += 1

    send()
    assert counted.sent >= 3400
    assert min(counted.passed, counted.refused) > 500, vars(counted)
    until(lambda: proxy.ready()["spool_bytes"] < 1000 or proxy.ready()["rejected"], 60)
    assert proxy.ready()["rejected"] == 0
    assert proxy.ready()["uncaptured"] == 0
    assert proxy.client.get("/healthz").status_code == 200
    assert [
        record.getMessage() for record in caplog.records if record.levelname == "ERROR" and record.name.startswith("stillroom")
    ] == []


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


def listed(count: int) -> dict[str, bytes]:
    """Bodies with so many values that have to be made, the worst of each kind."""
    return {
        "lists": b'{"model":"m","x":[' + b"[]," * (count // 2) + b"[]]}",
        "objects": b'{"model":"m","x":[' + b'{"a":1},' * (count // 2) + b"{}]}",
        "messages": b'{"model":"m","messages":[' + b'{"role":"system","content":"a"},' * (count // 3) + b"{}]}",
        "tools": b'{"model":"m","tools":[' + b'{"b":1,"a":{}},' * (count // 4) + b"{}]}",
        "input": b'{"model":"m","input":[' + b'{"role":"system","content":[]},' * (count // 4) + b"{}]}",
        "numbers": b'{"model":"m","prompt":[' + b"1," * count + b"1]}",
        "leniently": b'{"model":"m","x":NaN,"y":[' + b"[]," * (count // 10) + b"[]]}",
    }


def long(size: int) -> dict[str, bytes]:
    """Bodies of so many bytes that are one value, or none."""
    return {
        "text": b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * size + b'"}]}',
        "a system text": b'{"model":"m","messages":[{"role":"system","content":"' + b"word " * (size // 5) + b'"}]}',
        "escapes": b'{"model":"m","messages":[{"role":"user","content":"' + b"\\u00e9" * (size // 6) + b'"}]}',
        "a lone surrogate": b'{"model":"m","x":"\\ud800","y":"' + b"x" * size + b'"}',
        "a number": b'{"model":"m","x":' + b"9" * size + b"}",
        "brackets": b"[" * size,
        "nothing": b'{"model":"m"' + b" " * size + b"}",
    }


def test_large_bodies_are_answered_while_others_are(start, teacher):
    """100 MB, and as many small values as are read at all; measured with the clients and the teacher in the same process."""
    proxy = start(max_body_bytes=100 * MB)
    small = {f"{kind} x 590,000": body for kind, body in listed(590_000).items()}
    most = {f"100 MB of {kind}": body for kind, body in long(99 * MB).items() if kind in ("text", "brackets", "nothing")}
    some = {f"20 MB of {kind}": body for kind, body in long(20 * MB).items()}
    for path, bodies in zip(PATHS, (small, most, some), strict=True):
        for kind, body in bodies.items():
            with others(proxy, most=4), Wire(proxy.url, 60) as wire:
                began = time.monotonic()
                said = wire.post(body, path, "X-Stillroom-Capture: off").answer()
                print(f"{kind}: {said.status} in {time.monotonic() - began:.2f} s")
                assert said.status in (200, 400, 413)
                assert said.status != 200 or teacher.seen[-1].body == body or body in [seen.body for seen in teacher.seen[-50:]]
            teacher.seen.clear()


def test_more_values_than_can_be_read_in_time_are_refused(start, teacher):
    proxy = start(max_body_bytes=100 * MB)
    body = b'{"model":"m","x":[' + b"[]," * 33_000_000 + b"[]]}"
    with others(proxy, most=4), Wire(proxy.url, 60) as wire:
        for path in PATHS:
            said = wire.post(body, path).answer()
            assert (said.status, said.code) == (413, "body_too_complex")
        assert wire.post(orjson.dumps(chat("[{," * 200_000))).answer().status == 200  # below the size at which it is looked at
    assert not [seen for seen in teacher.seen if len(seen.body) > 10 * MB]


@pytest.mark.parametrize("open_", [b"[", b'{"a":'], ids=["lists", "objects"])
def test_nesting_of_a_hundred_thousand_is_refused_wherever_it_is(start, teacher, open_):
    proxy = start()
    close = b"]" if open_ == b"[" else b"}"
    deep = open_ * 100_000 + b"1" + close * 100_000
    for path in PATHS:
        for body in (deep, b'{"model":"m","messages":%b}' % deep, b'{"model":"m","input":NaN,"tools":%b}' % deep, open_ * 100_000):
            with Wire(proxy.url) as wire, soon(2):
                assert wire.post(body, path).answer().code == "invalid_json"
    assert not teacher.seen


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_larger_than_the_limit_is_told_so_within_a_second_of_it_while_others_are_served(start, teacher, framing, path):
    proxy = start(max_body_bytes=10 * MB)
    with others(proxy, most=2), Wire(proxy.url) as wire:
        if framing == "length":
            with soon(1):
                assert wire.send(post(b"", path, f"Content-Length: {10 * MB + 1}")).answer().code == "body_too_large"
        else:
            wire.send(post(b"", path, "Transfer-Encoding: chunked"))
            part = b"%x\r\n%b\r\n" % (MB, b" " * MB)
            for _ in range(11):
                wire.send(part)
            with soon(1):
                said = wire.answer()
            assert said.code == "body_too_large"
            for _ in range(30):  # nobody keeps what comes now
                wire.send(part)
            assert wire.send(b"0\r\n\r\n" + get("/healthz")).answer().status == 200
    assert {len(seen.body) for seen in teacher.seen} == {len(orjson.dumps(chat()))}


BOMB = gzip.compress(bytes(500 * MB), 1)


@pytest.mark.parametrize("path", [*PATHS, "/v1/embeddings"])
def test_a_packed_request_is_not_unpacked(start, teacher, path):
    with others(start(), most=2), Wire(start().url) as wire, soon(3):
        said = wire.post(BOMB, path, "Content-Encoding: gzip").answer()
        assert said.status == (200 if path == "/v1/embeddings" else 400)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("status", [200, 401])
def test_a_packed_answer_is_unpacked_so_far_and_no_further(start, teacher, captures, streamed, status):
    """500 MB in 2 MB, to all but one of the clients something else."""

    async def reply(exchange: Exchange) -> bool | None:
        if b"bomb" not in exchange.seen.body:
            return await json(completion("ok"))(exchange)
        packed = [("Content-Encoding", "gzip")]
        return await (stream([BOMB], headers=packed) if streamed else json(BOMB, status, packed))(exchange)

    teacher.reply = reply
    proxy = start()
    before = memory()
    with others(proxy, most=4), Wire(proxy.url) as wire, soon(10):
        assert wire.post(orjson.dumps(chat("bomb"))).answer().body == BOMB
        (capture,) = captures(1)
    assert len(capture.response) <= 100_000_000
    assert memory() - before < 1500
    assert proxy.ready()["rejected"] == 0


def memory() -> float:
    """MiB that this process has."""
    with open("/proc/self/status") as status:  # noqa: PTH123 - one line of it
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024  # type: ignore[index]


def test_clients_that_begin_and_never_go_on_keep_nobody_waiting(start, teacher):
    proxy = start()
    halves = [
        b"POST /v1/chat/comp",
        post(b"")[:-2],
        post(b'{"mo', PATHS[0], "Content-Length: 900"),
        post(b"5\r\nhe", PATHS[1], "Transfer-Encoding: chunked"),
    ]
    waiting = [Wire(proxy.url).send(halves[number % len(halves)]) for number in range(400)]
    with others(proxy, most=2):
        time.sleep(0.5)
    for wire in waiting:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wire.socket.close()
    until(lambda: len(proxy._server.config.loaded_app.connections) <= 1)
    assert not [seen for seen in teacher.seen if seen.body != orjson.dumps(chat())]


def test_requests_whose_headers_say_strange_things_are_no_failures_of_ours(start, teacher):
    proxy, odd = start(), ["", " ", "\x7f", "é" * 50, "%", "{}", "None", "-1", "9" * 5000, "a,b", "=", "\t"]
    names = [
        "X-Stillroom-Task", "X-Stillroom-Route", "X-Stillroom-Capture", "X-Stillroom-Teacher", "X-Stainless-Retry-Count", "Te",
        "Authorization", "Content-Type", "Content-Encoding", "Accept", "Accept-Encoding", "Traceparent", "Tracestate", "Cookie",
        "Api-Key", "Expect", "Trailer", "Connection", "Upgrade", "Sec-WebSocket-Key", "X-Forwarded-For", "Range", "If-None-Match",
    ]  # fmt: skip
    for name in names:
        for value in odd:
            for path in (PATHS[0], "/v1/embeddings", "/healthz", "/metrics"):
                with Wire(proxy.url) as wire:
                    said = wire.post(orjson.dumps(chat()), path, f"{name}: {value}").answer()
                    assert said.status in (200, 400, 404, 405), (name, value, said)
    for path in (
        "/readyz?x=%ff",
        "/healthz/",
        "/metrics?%00",
        "/v1",
        "/v1?",
        "/v1/%00",
        "/v1/" + "a" * 60_000,
        "/v1//",
        "/v1/%zz",
        "/%2e%2e",
    ):
        with Wire(proxy.url) as wire:
            assert wire.send(get(path)).answer("GET").status < 500, path
    assert httpx.get(f"{proxy.url}/healthz").json() == {"status": "ok"}


def test_no_counts_or_pages_are_made_up_by_strange_paths(start):
    proxy = start()
    for number in range(300):
        proxy.client.get(f"/v1/{zlib.crc32(bytes([number % 256]))}-{number}")
    shown = httpx.get(f"{proxy.url}/metrics").text
    assert len(shown) < 200_000
    assert "-299" not in shown
