"""What a teacher can do wrong: the client sees exactly that, nothing worse, and the capture says so.

Statuses, early ends, silence before the head and encodings are in test_completions.py; framing at the byte in test_http1.py.
"""

import asyncio
import gzip
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import openai
import orjson
import pytest

from store.states import CaptureStatus
from tests.proxy.conftest import chat, until
from tests.proxy.upstream import Exchange, Reply, abort, completion, events, hang, json, stream
from tests.proxy.wire import Wire, get, post, soon

STREAM = orjson.dumps(chat(stream=True))
BODY = orjson.dumps(chat())
ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
EVENTS = [("Content-Type", "text/event-stream")]
CHUNKED = [*EVENTS, ("Transfer-Encoding", "chunked")]


def says(*parts: bytes, keep: bool | None = False, pause: float = 0.0) -> Reply:
    """Bytes as they are, then the connection's end: closed, or reset with `keep=None`."""

    async def reply(exchange: Exchange) -> bool | None:
        for part in parts:
            await exchange.write(part)
            await asyncio.sleep(pause)
        if keep is None:
            exchange.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return keep

    return reply


async def stalls(exchange: Exchange) -> None:
    """A stream that begins, and says no more."""
    await exchange.head(200, CHUNKED)
    await exchange.chunk(events("half")[1])
    await hang(exchange)


HALF = events("half")[1]
FRAMED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
#: name: what the teacher does behind the first event, the connection kept or not
BREAKS = {
    "closed": says(FRAMED + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n" % (len(HALF), HALF), pause=0.05),
    "reset": says(FRAMED + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n" % (len(HALF), HALF), pause=0.05, keep=None),
    "in a chunk": says(FRAMED + b"Transfer-Encoding: chunked\r\n\r\n", b"ff\r\n" + HALF, pause=0.05),
    "no chunk": says(FRAMED + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\nzz" % (len(HALF), HALF), pause=0.05),
    "too short": says(FRAMED + b"Content-Length: 99999\r\n\r\n", HALF, pause=0.05),
    "silent": stalls,
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_stream_that_breaks_off_in_whatever_way_breaks_for_the_client_too(start, teacher, captures, name):
    proxy = start(read_timeout=0.4)
    for number, path in enumerate(ENDPOINTS):
        teacher.reply = json(completion("ok"))
        with Wire(proxy.url) as wire:
            assert wire.post(BODY, path).answer().status == 200  # the next one is on a kept connection
        teacher.reply = BREAKS[name]
        for _ in range(2):
            with Wire(proxy.url) as client, soon(5):
                said = client.post(STREAM, path).answer()
                assert (said.status, said.whole, said.body) == (200, False, HALF)
                assert client.closed()
        streams = [capture for capture in captures(3 * number + 3) if capture.stream]
        for capture in streams:
            assert (capture.status, capture.response) == (CaptureStatus.INCOMPLETE, HALF)
            assert "broke off" in capture.error
        assert len(streams) == 2 * number + 2
    assert len(teacher.seen) == 9  # nothing is asked twice once an answer has begun


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (abort, 502, "teacher_lost"),
        (says(keep=False), 502, "teacher_lost"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Le", pause=0.05), 502, "teacher_lost"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Le", pause=0.05, keep=None), 502, "teacher_lost"),
        (says(b"SSH-2.0-OpenSSH_9.6\r\n"), 502, "teacher_lost"),
        (says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"), 502, "teacher_lost"),
        (says(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300_000), 502, "teacher_lost"),
        (hang, 504, "teacher_timeout"),
    ],
    ids=["reset", "closed", "half a head", "half a head, reset", "no HTTP", "another protocol", "huge head", "silent"],
)
def test_a_teacher_that_breaks_before_its_answer_is_told_in_openais_shape(start, teacher, captures, reply, status, code):
    proxy = start(read_timeout=0.4)
    for path in [*ENDPOINTS, "/v1/embeddings"]:
        proxy.client.get("/healthz")
        teacher.seen.clear()
        teacher.reply = reply
        with Wire(proxy.url) as wire, soon(5):
            said = wire.post(STREAM, path).answer()
            assert (said.status, said.code) == (status, code)
            assert set(orjson.loads(said.body)["error"]) == {"message", "type", "param", "code"}
            assert len(teacher.seen) == 1
            teacher.reply = json(completion("back"), headers=[("Connection", "close")])
            assert wire.post(BODY, path).answer().status == 200  # the connection, and the proxy, go on
    lost = [capture for capture in captures(6) if capture.http_status == status]
    assert [(capture.status, orjson.loads(capture.response)["error"]["code"]) for capture in lost] == [
        (CaptureStatus.FAILED, code)
    ] * 3


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/embeddings"])
@pytest.mark.parametrize("dies", [abort, says(keep=False)], ids=["reset", "closed"])
def test_kept_connections_that_have_all_died_are_nothing_a_client_sees(start, teacher, path, dies):
    proxy = start()
    teacher.reply = json(completion("ok"), pause=0.2)
    wires = [Wire(proxy.url).post(BODY, path) for _ in range(4)]
    assert [wire.answer().status for wire in wires] == [200] * 4
    assert {seen.connection for seen in teacher.seen} == {1, 2, 3, 4}

    async def old_ones_die(exchange: Exchange) -> bool | None:
        return await (dies if exchange.seen.connection <= 4 else json(completion("ok")))(exchange)

    teacher.reply = old_ones_die
    for wire in wires:
        assert wire.post(BODY, path).answer().status == 200
        wire.socket.close()


def test_a_teacher_that_restarts_between_two_requests_is_not_noticed(start, teacher):
    proxy = start()
    with Wire(proxy.url) as wire:
        for path in [*ENDPOINTS, "/v1/embeddings"] * 2:
            assert wire.post(BODY, path).answer().status == 200
            teacher.stop()
            teacher.start()


def test_an_answer_that_nobody_asked_for_is_nobodys(start, teacher):
    """What comes behind an answer on its connection would else be the next client's."""
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    right = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"
    proxy = start()
    for behind in (forged, forged[:30], b"HTTP/1.1 200 OK\r\nX: ", b"junk", b"\r\n" + forged):
        for path in (ENDPOINTS[0], "/v1/embeddings"):
            teacher.reply = says(right + behind, keep=True)
            for _ in range(3):
                with Wire(proxy.url) as wire:
                    assert wire.post(BODY, path).answer().body == b"right", (behind, path)
            teacher.reply = says(right, behind, keep=True, pause=0.03)
            for _ in range(3):
                with Wire(proxy.url) as wire:
                    said = wire.post(BODY, path).answer()
                    assert (said.status, said.body) == (200, b"right"), (behind, path)
                time.sleep(0.05)


@pytest.mark.parametrize("path", [ENDPOINTS[0], "/v1/embeddings"])
def test_an_answer_without_a_length_ends_with_its_connection_and_a_reset_is_no_end(start, teacher, captures, path):
    whole = b"".join(events("to the ", "end"))
    proxy = start()
    teacher.reply = says(FRAMED + b"\r\n", whole[:100], whole[100:], pause=0.03)
    with Wire(proxy.url) as wire:
        said = wire.post(STREAM, path).answer()
        assert (said.body, said.whole, said.header("transfer-encoding")) == (whole, True, "chunked")
        teacher.reply = says(FRAMED + b"\r\n", whole[:100], keep=None, pause=0.05)
        said = wire.post(STREAM, path).answer()
        assert (said.body, said.whole) == (whole[:100], False)
    if path in ENDPOINTS:
        assert [capture.status for capture in captures(2)] == [CaptureStatus.COMPLETE, CaptureStatus.INCOMPLETE]


def test_interim_answers_are_not_passed_on_and_the_last_one_is(start, teacher, captures):
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\nX-Interim: 1\r\n\r\n"
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Final: 1\r\n\r\n{}"
    proxy = start()
    for parts in ((interim + final,), (interim[:30], interim[30:], final[:10], final[10:])):
        teacher.reply = says(*parts, pause=0.02, keep=True)
        for path in (ENDPOINTS[0], "/v1/embeddings"):
            with Wire(proxy.url) as wire:
                said = wire.post(BODY, path).answer()
                assert (said.status, said.body, said.header("x-final"), said.header("x-interim")) == (200, b"{}", "1", None)
    assert captures(2)[1].response == b"{}"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 No Content\r\nX-Request-Id: r\r\n\r\n",
        b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 1000\r\nX-Request-Id: r\r\n\r\n',
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Request-Id: r\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Request-Id: r\r\n\r\n0\r\n\r\n",
    ],
    ids=["204", "304", "length 0", "no chunk"],
)
def test_an_answer_without_a_body_is_one(start, teacher, captures, head):
    teacher.reply = says(head, keep=True)
    with Wire(start(read_timeout=2).url) as wire, soon(4):
        for path in [*ENDPOINTS, "/v1/files/f-1"] * 2:
            said = wire.post(BODY, path).answer()
            assert (said.status, said.body, said.whole) == (int(head[9:12]), b"", True)
            assert said.header("x-request-id") == "r"
            assert wire.send(get("/v1/files/f-1").replace(b"GET", b"HEAD")).answer("HEAD").header("x-request-id") == "r"
    assert {capture.response for capture in captures(6)} == {b""}


def test_the_head_of_a_completion_is_the_teachers_answer_to_head(start, teacher):
    teacher.reply = json(completion("x"))
    with Wire(start().url) as wire:
        said = wire.send(get(ENDPOINTS[0]).replace(b"GET", b"HEAD")).answer("HEAD")
        assert (said.status, said.header("content-length")) == (200, str(len(orjson.dumps(completion("x")))))
        assert wire.send(get("/healthz")).answer().status == 200


def test_headers_go_through_however_many_and_large_they_are(start, teacher):
    many = [(f"X-{n}", "v" * 900) for n in range(900)]
    teacher.reply = json(completion("x"), headers=[*many, ("X-Twice", "1"), ("X-Twice", "2"), ("X-Empty", ""), ("X-Latin", "é")])
    with Wire(start().url) as wire:
        for path in (ENDPOINTS[0], "/v1/embeddings"):
            headers = wire.post(BODY, path).answer().headers
            assert [pair for pair in headers if pair[1] == "v" * 900] == [(key.lower(), value) for key, value in many]
            assert [value for key, value in headers if key == "x-twice"] == ["1", "2"]
            assert ("x-empty", "") in headers
            assert ("x-latin", "é") in headers


def test_trailers_are_left_out_and_do_not_become_headers(start, teacher, captures):
    body = b"".join(events("a"))
    framed = b"%x;ext=1\r\n%b\r\n0\r\nX-Trailer: 1\r\nSet-Cookie: x\r\n\r\n" % (len(body), body)
    teacher.reply = says(FRAMED + b"Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n", framed, keep=True, pause=0.02)
    with Wire(start().url) as wire:
        for path in (ENDPOINTS[0], "/v1/embeddings"):
            said = wire.post(STREAM, path).answer()
            assert (said.body, said.whole) == (body, True)
            assert not {"trailer", "x-trailer", "set-cookie"} & {key for key, _ in said.headers}
    assert captures(1)[0].status == CaptureStatus.COMPLETE


BAD = b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}\n\n'


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/embeddings"])
def test_bad_utf_8_and_what_is_no_event_go_through_as_they_are(start, teacher, captures, path):
    parts = [b"\xff\xff\n\n", b"data: {\n\n", BAD, b":\n\n", b"data:\n\n", b"\0\0\n\n", b"event: x\n\n", *events("fine")]
    teacher.reply = stream(parts, pause=0.005)
    proxy = start()
    assert proxy.client.post(path, content=STREAM).content == b"".join(parts)
    teacher.reply = json(b'{"choices": "\xff\xfe')
    assert proxy.client.post(path, content=BODY).content == b'{"choices": "\xff\xfe'
    if path in ENDPOINTS:
        streamed, whole = captures(2)
        assert (streamed.response, whole.response) == (b"".join(parts), b'{"choices": "\xff\xfe')
        assert whole.status == CaptureStatus.FAILED
    assert proxy.ready()["rejected"] == 0


def test_a_stream_of_single_bytes_is_relayed_byte_by_byte(start, teacher):
    sent = b"data: {}\n\ndata: [DONE]\n\n"
    teacher.reply = stream([bytes([byte]) for byte in sent], pause=0.1)
    proxy = start(read_timeout=1)

    def listen(path: str) -> list[tuple[float, bytes]]:
        began = time.monotonic()
        with httpx.stream("POST", f"{proxy.url}{path}", content=STREAM) as answer:
            return [(time.monotonic() - began, part) for part in answer.iter_raw()]

    with ThreadPoolExecutor() as clients:
        heard = list(clients.map(listen, [*ENDPOINTS, "/v1/audio/speech"]))
    for came in heard:
        assert b"".join(part for _, part in came) == sent
        assert came[0][0] < 1
        assert len([part for _, part in came if len(part) == 1]) >= 12  # all but the last event, which waits for the capture
        gaps = [late - early for (early, _), (late, _) in pairwise(came[:10])]
        assert sorted(gaps)[5] > 0.05


def test_a_whole_answer_may_come_in_single_bytes_too(start, teacher, captures):
    body = orjson.dumps(completion("slow"))
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), *(bytes([byte]) for byte in body)]
    head = [bytes([byte]) for byte in pieces[0]]
    teacher.reply = says(*head, *pieces[1:], pause=0.002, keep=True)
    proxy = start(read_timeout=0.5)
    assert [proxy.chat().content for _ in range(2)] == [body, body]
    assert [capture.answer_text for capture in captures(2)] == ["slow", "slow"]


@pytest.mark.parametrize("size", [65_536, 1_000_000, 10_000_000])
def test_events_of_a_megabyte_go_through(start, teacher, captures, size):
    large = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * size + b'"}}]}\n\n'
    parts = [large, large, *events("end")]
    teacher.reply = stream(parts)
    with soon(10):
        assert start().chat(chat(stream=True)).content == b"".join(parts)
    (capture,) = captures(1)
    assert len(capture.response) == len(b"".join(parts))
    assert (capture.status, len(capture.answer_text)) == (CaptureStatus.COMPLETE, 2 * size + 3)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, gzip"])
def test_encoded_answers_agree_with_their_headers_on_every_endpoint(start, teacher, captures, coding):
    proxy, readable, number = start(), coding.lower() in ("gzip", "deflate"), 0
    framing = [("Content-Encoding", coding), ("Vary", "Accept-Encoding")]
    for streamed in (True, False):
        plain = b"".join(events("pa", "cked")) if streamed else orjson.dumps(completion("packed"))
        packs = {"deflate": zlib.compress, "br": lambda _: b"\x8b\x02\x80no\x03", "zstd": lambda _: b"\x28\xb5\x2f\xfdno"}
        data = packs.get(coding, gzip.compress)(plain)
        pieces = [data[i : i + 7] for i in range(0, len(data), 7)]
        teacher.reply = stream(pieces, headers=framing) if streamed else json(data, headers=framing)
        with Wire(proxy.url) as wire:
            for path in [*ENDPOINTS, "/v1/embeddings"]:
                said = wire.post(STREAM if streamed else BODY, path, "Accept-Encoding: gzip, br").answer()
                assert (said.body, said.header("content-encoding"), said.header("vary")) == (data, coding, "Accept-Encoding")
                assert said.header("content-length") == (None if streamed else str(len(data)))
                assert teacher.seen[-1].header("accept-encoding") == ["gzip, br"]
        number += 3
        found = [capture for capture in captures(number) if capture.stream is streamed]
        assert [capture.response for capture in found] == [plain if readable else data] * 3
        assert all(("-encoded" in (capture.error or "")) is not readable for capture in found)
        assert not readable or "packed" in [capture.answer_text for capture in found]


def test_what_is_said_to_be_packed_and_is_not_goes_through(start, teacher, captures):
    proxy = start()
    broken = gzip.compress(orjson.dumps(completion("x" * 1000)))[:-20]
    for data in (b'{"not": "packed"}', broken, b"\x1f\x8b", b""):
        teacher.reply = json(data, headers=[("Content-Encoding", "gzip")])
        with Wire(proxy.url) as wire:
            assert wire.post(BODY).answer().body == data
    found = captures(4)
    assert found[0].response == b'{"not": "packed"}'
    assert "cannot be read as gzip" in found[0].error
    assert proxy.ready()["rejected"] == 0


def test_an_sdk_sees_a_breaking_stream_as_an_error_and_a_429_as_one(start, teacher):
    proxy = start(read_timeout=1)
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk-x", max_retries=0) as client:
        for name in ("closed", "reset", "no chunk", "too short"):
            teacher.reply = BREAKS[name]
            with pytest.raises((openai.APIError, httpx.TransportError)):
                list(client.chat.completions.create(**chat(stream=True)))
        teacher.reply = json(
            {"error": {"message": "slow down"}}, 429, [("retry-after-ms", "1"), ("x-ratelimit-remaining-requests", "0")]
        )
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(**chat())
        assert error.value.response.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/embeddings"])
def test_errors_that_stream_are_passed_on_as_they_are(start, teacher, path):
    parts = [b'event: error\ndata: {"error": {"message": "overloaded"}}\n\n']

    async def fails(exchange: Exchange) -> bool:
        await exchange.head(529, [*CHUNKED, ("Retry-After", "3"), ("X-Should-Retry", "true")])
        for part in parts:
            await exchange.chunk(part)
        await exchange.write(b"0\r\n\r\n")
        return True

    teacher.reply = fails
    with Wire(start().url) as wire:
        said = wire.post(STREAM, path).answer()
        assert (said.status, said.body, said.whole) == (529, parts[0], True)
        assert (said.header("retry-after"), said.header("x-should-retry")) == ("3", "true")


def test_a_teacher_that_says_no_before_it_has_the_body_is_heard(start, teacher):
    async def refuse(exchange: Exchange) -> bool:
        await json({"error": {"message": "no"}}, 401, [("Connection", "close")])(exchange)
        while await exchange.reader.read(65_536):  # what else would come is a reset
            pass
        return False

    teacher.early = refuse
    proxy = start()
    for path in (ENDPOINTS[0], "/v1/files"):
        with Wire(proxy.url) as wire, soon(5):
            wire.send(post(b'{"model":"m"}' + b" " * 5_000_000, path))
            assert wire.answer().status == 401
            teacher.early, teacher.reply = None, json({})
            assert wire.send(get("/v1/models")).answer().status == 200
            teacher.early = refuse


def test_a_dead_teacher_does_not_slow_the_proxys_own_pages_down(start, teacher):
    teacher.reply = hang
    proxy = start(read_timeout=1.5)
    wires = [Wire(proxy.url).post(STREAM) for _ in range(100)]
    until(lambda: len(teacher.seen) == 100)
    for _ in range(20):
        with soon(1):
            assert httpx.get(f"{proxy.url}/healthz").status_code == 200
    assert {wire.answer().code for wire in wires} == {"teacher_timeout"}
