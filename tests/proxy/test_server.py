"""A worker's connections: many requests on one, those that idle, those that leave, and what is no HTTP."""

import socket
import threading
import time

import httpx
import orjson
import pytest

from store.states import CaptureStatus
from tests.proxy.conftest import chat, until
from tests.proxy.upstream import Exchange, completion, events, hang, json, stream
from tests.proxy.wire import Wire, chunked, get, post, soon

BODY = orjson.dumps(chat())
CHAT = "/v1/chat/completions"


async def echo(exchange: Exchange) -> bool:
    """Says what was asked for, later the sooner it was asked."""
    body = exchange.seen.body
    return bool(await json({"target": exchange.seen.target, "body": body.decode("latin-1")}, pause=0.05)(exchange))


def test_pipelined_requests_of_every_kind_are_answered_in_their_order(start, teacher):
    teacher.reply = echo
    proxy = start()
    kinds = [
        (get("/healthz"), lambda said: said.body == b'{"status":"ok"}'),
        (post(b'{"model":"m1"}'), lambda said: b"m1" in said.body and said.header("x-stillroom-task")),
        (get("/v1/models?n=1"), lambda said: b"n=1" in said.body),
        (post(b"{"), lambda said: said.status == 400 and said.code == "invalid_json"),
        (post(b'{"model":"m2"}', "/v1/embeddings"), lambda said: b"embeddings" in said.body and b"m2" in said.body),
        (get("/nothing"), lambda said: said.code == "unknown_path"),
        (post(chunked(b'{"model":', b'"m3"}'), CHAT, "Transfer-Encoding: chunked"), lambda said: b"m3" in said.body),
        (get("/v1/./x"), lambda said: said.code == "bad_path"),
        (post(b"", "/healthz"), lambda said: (said.status, said.header("allow")) == (405, "GET")),
    ]
    sent = b"".join(request for request, _ in kinds)
    for size in (len(sent), 97):  # in one piece, and in many
        with Wire(proxy.url) as wire:
            for i in range(0, len(sent), size):
                wire.send(sent[i : i + size])
            for request, fits in kinds:
                said = wire.answer()
                assert fits(said), (request, said)
            wire.send(get("/healthz"))
            assert wire.answer().status == 200


def test_a_connection_that_is_to_be_closed_is_closed_behind_that_answer_and_what_was_pipelined_is_not_asked(start, teacher):
    proxy = start()
    for request in (
        post(BODY, CHAT, "Connection: close"),
        get("/v1/models", "Connection: Close"),
        get("/healthz", "Connection: close"),
    ):
        teacher.seen.clear()
        with Wire(proxy.url) as wire:
            said = wire.send(request + get("/v1/second")).answer()
            assert (said.status, said.header("connection")) == (200, "close")
            assert wire.closed()
        assert [seen.target for seen in teacher.seen if seen.target == "/v1/second"] == []


def test_an_old_client_is_answered_as_it_understands_it(start, teacher):
    teacher.reply = stream(events("a", "b"))
    proxy, whole = start(), b"".join(events("a", "b"))
    old = post(BODY).replace(b"HTTP/1.1", b"HTTP/1.0")
    with Wire(proxy.url) as wire:  # it knows no chunks: the connection's end is the body's
        said = wire.send(old).answer()
        assert (said.body, said.header("transfer-encoding"), said.header("connection")) == (whole, None, "close")
    teacher.reply = json(completion("whole"))
    with Wire(proxy.url) as wire:
        for _ in range(2):
            kept = old.replace(b"Host: x", b"Host: x\r\nConnection: keep-alive")
            assert wire.send(kept).answer().header("connection") == "keep-alive"
    teacher.reply = stream(events("a")[:1], after="cut")
    with Wire(proxy.url) as wire, pytest.raises(ConnectionResetError):  # so that the end is not taken for the body's
        wire.send(old).answer()


def test_a_connection_that_is_not_used_is_closed_and_one_that_is_is_kept(start, teacher):
    proxy = start()
    proxy._server.config.timeout_keep_alive = 1
    asked = threading.Event()

    async def slow(exchange: Exchange) -> bool:
        asked.set()
        return bool(await json(completion("late"), pause=3.5)(exchange))

    silent, half, pages, busy, used = (Wire(proxy.url) for _ in range(5))
    half.send(b"POST /v1/chat/completions HTTP/1.1\r\nHos")
    teacher.reply = slow
    busy.send(post(BODY))
    assert asked.wait(5)
    teacher.reply = json({})
    for _ in range(8):  # longer than the limit, never idle as long
        assert used.send(get("/v1/models")).answer().status == 200
        assert pages.send(get("/healthz")).answer().status == 200
        time.sleep(0.4)
    assert silent.closed(0.5)
    assert half.closed(0.5)
    assert busy.answer().status == 200
    assert used.closed(3)
    assert pages.closed(3)
    for wire in (silent, half, pages, busy, used):
        wire.socket.close()


def test_a_body_may_come_later_and_slowly_and_a_client_that_waits_is_told_to_go_on(start, teacher):
    proxy = start()
    for path in (CHAT, "/v1/embeddings"):
        with Wire(proxy.url) as wire:
            head, _, body = post(BODY, path).partition(b"\r\n\r\n")
            wire.send(head + b"\r\n\r\n")
            for i in range(0, len(body), 20):
                time.sleep(0.02)
                wire.send(body[i : i + 20])
            assert wire.answer().status == 200
            assert teacher.seen[-1].body == BODY
            wire.send(post(BODY, path, "Expect: 100-continue").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            assert wire.answer().status == 100
            assert wire.send(BODY).answer().status == 200
            assert wire.send(post(BODY, path, "Expect: 100-continue")).answer().status == 200  # it did not wait: no 100
            assert not teacher.seen[-1].header("expect")


def test_a_client_that_waits_for_a_100_and_is_refused_may_keep_its_body_and_the_connection_ends(start, teacher):
    proxy = start(max_body_bytes=100)
    with Wire(proxy.url) as wire:
        said = wire.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 500\r\n\r\n"
        ).answer()
        assert (said.status, said.header("connection")) == (413, "close")
        assert wire.closed()


def test_what_is_sent_behind_a_refused_body_is_the_next_request(start, teacher):
    proxy = start(max_body_bytes=1000)
    smuggled = get("/v1/smuggled")
    with Wire(proxy.url) as wire:
        wire.send(post(smuggled * 2000))
        assert wire.answer().code == "body_too_large"
        assert wire.send(get("/v1/models")).answer().status == 200
    assert [seen.target for seen in teacher.seen] == ["/v1/models"]


NO_HTTP = {
    "two framings": post(BODY, CHAT, f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"),
    "two framings, turned": post(chunked(BODY), CHAT, "Transfer-Encoding: chunked", "Content-Length: 3"),
    "two lengths": post(BODY, CHAT, f"Content-Length: {len(BODY)}", "Content-Length: 3"),
    "the same length twice": post(BODY, CHAT, *[f"Content-Length: {len(BODY)}"] * 2),
    "a list of lengths": post(BODY, CHAT, f"Content-Length: {len(BODY)}, {len(BODY)}"),
    "a negative length": post(BODY, CHAT, f"Content-Length: -{len(BODY)}"),
    "a signed length": post(BODY, CHAT, f"Content-Length: +{len(BODY)}"),
    "a hexadecimal length": post(BODY, CHAT, f"Content-Length: 0x{len(BODY):x}"),
    "an endless length": post(BODY, CHAT, "Content-Length: 99999999999999999999999"),
    "no length": post(BODY, CHAT, "Content-Length: "),
    "a space before the colon": post(BODY, CHAT, f"Content-Length : {len(BODY)}"),
    "an unknown coding": post(chunked(BODY), CHAT, "Transfer-Encoding: xchunked"),
    "a hidden coding": post(chunked(BODY), CHAT, "Transfer-Encoding: \x0bchunked"),
    "chunks that are not last": post(chunked(BODY), CHAT, "Transfer-Encoding: chunked, identity"),
    "chunks twice": post(chunked(BODY), CHAT, *["Transfer-Encoding: chunked"] * 2),
    "a folded header": post(BODY, CHAT, "X-A: b\r\n c"),
    "a folded coding": post(chunked(BODY), CHAT, "Transfer-Encoding:\r\n chunked"),
    "bare line feeds": post(BODY).replace(b"\r\n", b"\n"),
    "a bare line feed": post(BODY, CHAT, "X-A: b\nX-C: d"),
    "a bare carriage return": post(BODY, CHAT, "X-A: b\rX-C: d"),
    "a NUL": post(BODY, CHAT, "X-A: b\0c"),
    "a negative chunk": post(b"-5\r\nhello\r\n0\r\n\r\n", CHAT, "Transfer-Encoding: chunked"),
    "a hexadecimal chunk": post(b"0x5\r\nhello\r\n0\r\n\r\n", CHAT, "Transfer-Encoding: chunked"),
    "an endless chunk": post(b"ffffffffffffffffff\r\nhello", CHAT, "Transfer-Encoding: chunked"),
    "a chunk that does not end": post(b"5\r\nhello0\r\n\r\n", CHAT, "Transfer-Encoding: chunked"),
    "chunks by line feeds": post(b"5\nhello\n0\n\n", CHAT, "Transfer-Encoding: chunked"),
    "a line feed behind an extension": post(b"5;a=b\nhello\r\n0\r\n\r\n", CHAT, "Transfer-Encoding: chunked"),
    "a length among the trailers": post(b"0\r\nContent-Length: zz\r\n\r\n", CHAT, "Transfer-Encoding: chunked"),
    "a name with a space": get("/v1/models", "X A: b"),
    "no colon": get("/v1/models", "XA"),
    "no name": get("/v1/models", ": b"),
    "another version": get("/v1/models").replace(b"1.1", b"1.2"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a path that is no ASCII": "GET /v1/ä HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
}  # fmt: skip


def test_what_is_no_http_is_refused_in_openais_shape_and_nothing_behind_it_is_read(start, teacher):
    proxy = start()
    for name, request in NO_HTTP.items():
        with Wire(proxy.url) as wire, soon(1):
            said = wire.send(request + get("/v1/smuggled")).answer()
            assert (said.status, said.code, said.header("connection")) == (400, "bad_http", "close"), name
            assert set(orjson.loads(said.body)["error"]) == {"message", "type", "param", "code"}
            assert wire.closed()
        with Wire(proxy.url) as wire:
            assert wire.send(get("/v1/models")).answer().status == 200
    assert {seen.target for seen in teacher.seen} == {"/v1/models"}


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
def test_an_extension_of_a_chunk_is_left_out_and_a_trailer_counts_for_nothing(start, teacher, path):
    proxy = start()
    trailers = b"Authorization: Bearer smuggled\r\nX-Stillroom-Task: smuggled\r\nCookie: smuggled\r\nX-T: smuggled\r\n"
    body = b"5;a=b\r\n%b\r\n%x;smuggled\r\n%b\r\n0;x\r\n%b\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:], trailers)
    with Wire(proxy.url) as wire:
        for cut in (len(body), 30, len(body) - 20):
            wire.send(post(body[:cut], path, "Transfer-Encoding: chunked", "Authorization: Bearer mine"))
            time.sleep(0.05)
            said = wire.send(body[cut:]).answer()
            assert said.status == 200
            assert "smuggled" not in str(said.headers)
            seen = teacher.seen[-1]
            assert (seen.body, seen.header("authorization")) == (BODY, ["Bearer mine"])
            assert "smuggled" not in str(seen.headers)


def test_a_client_that_would_rather_speak_http_2_is_answered_in_this_protocol(start, teacher):
    """java.net.http asks so with each of its requests."""
    proxy = start()
    asks = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    framed = post(chunked(BODY[:7], BODY[7:]), CHAT, "Transfer-Encoding: chunked", *asks)
    with Wire(proxy.url) as wire:
        for request, body in [
            (post(BODY, CHAT, *asks), BODY),
            (framed, BODY),
            (post(BODY, "/v1/embeddings", *asks), BODY),
            (get("/v1/models", *asks), b""),
        ]:
            for cut in (len(request), len(request) - 3, 40, request.index(b"\r\n\r\n") + 4):
                wire.send(request[:cut])
                time.sleep(0.02)
                said = wire.send(request[cut:]).answer()
                assert (said.status, said.header("connection")) == (200, None)
                assert teacher.seen[-1].body == body
                assert not {"upgrade", "http2-settings"} & {key.lower() for key, _ in teacher.seen[-1].headers}
        assert wire.send(get("/healthz", *asks)).answer().body == b'{"status":"ok"}'
        assert wire.send(get("/healthz", "Connection: Upgrade", "Upgrade: websocket")).answer().status == 200
        assert wire.send(post(BODY, CHAT, "Connection: close, Upgrade", "Upgrade: h2c")).answer().header("connection") == "close"
        assert wire.closed()


@pytest.mark.parametrize("target", ["x:443", "/v1/models"])
def test_nobody_connects_through_it(start, teacher, target):
    with Wire(start().url) as wire:
        assert wire.send(f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).answer().status in (400, 405)
        assert wire.closed()
    assert not teacher.seen


LONG = b"x" * 1_000_000


@pytest.mark.parametrize(
    "parts",
    [
        (b"GET /v1/models HTTP/1.1\r\nX: ", LONG),
        (b"GET /v1/", LONG),
        (b"GET /v1/models HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,),
        (b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,),
        (post(b"5\r\nhello\r\n0\r\nX: ", CHAT, "Transfer-Encoding: chunked"), LONG),
        (post(b"5\r\nhello\r\n0\r\n" + b"a: b\r\n" * 100_000, CHAT, "Transfer-Encoding: chunked"),),
        (post(b"5;", CHAT, "Transfer-Encoding: chunked"), LONG),
        (b"\r\n" * 500_000,),
    ],
    ids=["value", "path", "many", "a page's", "trailer", "trailers", "extension", "nothing"],
)
def test_a_head_without_an_end_is_refused(start, teacher, parts):
    with Wire(start().url) as wire, soon(2):
        try:
            wire.send(b"".join(parts))
        except ConnectionError:
            return  # it was not read to its end
        try:
            said = wire.answer()
        except ConnectionError:
            return
        assert (said.status, said.code, said.header("connection")) == (431, "headers_too_large", "close")
    assert not teacher.seen


def test_a_head_that_is_too_large_and_no_larger_than_that_is_told_so(start, teacher):
    proxy = start()
    with Wire(proxy.url) as wire:
        for _ in range(3):
            for part in (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 120_000, b"x" * 120_000, b"\r\n\r\n"):
                wire.send(part)
                time.sleep(0.01)
            assert wire.answer().status == 200
        wire.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: ")
        for _ in range(20):
            time.sleep(0.02)
            wire.send(b"x" * 13_500)
        said = wire.answer()
        assert (said.status, said.code) == (431, "headers_too_large")
        assert wire.closed()
    assert len(teacher.seen) == 3


def test_large_bodies_are_no_large_heads(start, teacher):
    proxy, body = start(), orjson.dumps(chat("x" * 3_000_000))
    with Wire(proxy.url) as wire:
        for request in (
            post(body),
            post(chunked(*(body[i : i + 300_000] for i in range(0, len(body), 300_000))), CHAT, "Transfer-Encoding: chunked"),
        ):
            head, _, rest = request.partition(b"\r\n\r\n")
            wire.send(head[:30])
            time.sleep(0.02)
            wire.send(head[30:])
            time.sleep(0.02)
            wire.send(b"\r\n\r\n" + rest)
            assert wire.answer().status == 200
            assert teacher.seen[-1].body == body


def test_when_it_stops_open_answers_end_idle_connections_close_and_no_new_one_is_taken(start, teacher, captures):
    teacher.reply = stream(events("slow", "ly"), pause=0.25)
    proxy = start()
    idle, open_now, old = Wire(proxy.url), Wire(proxy.url), Wire(proxy.url)
    assert idle.send(get("/healthz")).answer().status == 200
    assert old.send(get("/v1/models")).answer().status == 200
    until(lambda: len(teacher.seen) == 1)
    open_now.post(orjson.dumps(chat(stream=True)))
    until(lambda: len(teacher.seen) == 2)
    proxy._server.should_exit = True
    assert idle.closed(2)
    assert old.closed(2)
    with pytest.raises(ConnectionError):
        Wire(proxy.url).send(get("/healthz")).answer()
    said = open_now.answer()
    assert said.whole
    assert said.body == b"".join(events("slow", "ly"))
    assert open_now.closed(2)
    proxy.stop()
    assert captures(1)[0].status == CaptureStatus.COMPLETE


@pytest.mark.parametrize("reply", [hang, stream(events("half")[:2], after="hang")], ids=["before its head", "in a stream"])
def test_an_answer_that_does_not_end_is_cut_after_the_limit_and_captured_as_incomplete(start, teacher, captures, reply):
    proxy = start()
    proxy._server.config.timeout_graceful_shutdown = 1
    assert proxy.chat().status_code == 200  # the second exchange is on a kept connection
    teacher.reply = reply
    wires = [Wire(proxy.url).post(orjson.dumps(chat(stream=True))) for _ in range(3)]
    uploads = Wire(proxy.url).send(post(b"", "/v1/files", "Content-Length: 100000"))
    until(lambda: len(teacher.seen) == 5)
    began = time.monotonic()
    proxy.stop()
    assert 0.9 < time.monotonic() - began < 8
    assert all(wire.broken() for wire in wires)
    assert uploads.closed(1)
    found = captures(4)
    assert [capture.status for capture in found[1:]] == [CaptureStatus.INCOMPLETE] * 3
    assert {capture.error for capture in found[1:]} == {"the proxy was stopped during this exchange"}
    assert all(seen.left.wait(2) for seen in teacher.seen[1:] if seen.target == CHAT)


def test_a_client_that_closes_its_half_or_resets_is_gone(start, teacher, captures):
    teacher.reply = hang
    proxy = start()
    with Wire(proxy.url) as wire:
        wire.post(BODY)
        until(lambda: len(teacher.seen) == 1)
        wire.socket.shutdown(socket.SHUT_WR)
        assert teacher.seen[0].left.wait(1)
    with Wire(proxy.url) as wire:
        wire.post(BODY)
        until(lambda: len(teacher.seen) == 2)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert teacher.seen[1].left.wait(1)
    assert {capture.error for capture in captures(2)} == {"the client left before the end"}


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(start, teacher):
    proxy = start()
    for path in (CHAT, "/v1/files"):
        with Wire(proxy.url) as wire:
            wire.send(post(b"x" * 70_000, path, "Content-Length: 200000"))
            time.sleep(0.1)
    until(
        lambda: (
            httpx.get(f"{proxy.url}/healthz").status_code == 200
            and not any(each.busy for each in proxy._server.config.loaded_app.connections)
        )
    )
    assert [seen.target for seen in teacher.seen] in ([], ["/v1/files"])
