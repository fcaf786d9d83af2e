"""Realtime: a WebSocket through the proxy, with a real server behind it and a real client before it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from http import HTTPStatus
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tests.proxy.conftest import KEY, chat, until
from tests.proxy.upstream import hang, json
from tests.proxy.wire import Wire, post

KEYED = {"Authorization": f"Bearer {KEY}"}
UPGRADE = (
    b"GET /v1/realtime?model=rt-1 HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Realtime:
    """A WebSocket server in a thread of its own: `talk` is what it does with each connection."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.ended: list[tuple[float, int | None]] = []  #: when, and the close code that came
        self.talk: Callable[[ServerConnection], Coroutine[Any, Any, None]] = echo
        self.refuse: Response | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), daemon=True)
        self._thread.start()
        assert started.wait(5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._halt.set)
        self._thread.join(5)

    async def _run(self, started: threading.Event) -> None:
        self._loop, self._halt = asyncio.get_running_loop(), asyncio.Event()
        server: Server = await serve(
            self._serve, "127.0.0.1", 0, process_request=self._judge, max_size=None, subprotocols=[Subprotocol("realtime")]
        )
        async with server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            started.set()
            await self._halt.wait()
            server.close(close_connections=True)

    def _judge(self, _: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        return self.refuse

    async def _serve(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self.talk(connection)
        await connection.wait_closed()
        self.ended.append((time.monotonic(), connection.close_code))


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@pytest.fixture
def realtime() -> Iterator[Realtime]:
    server = Realtime()
    yield server
    server.stop()


def talk(url: str, what: Callable[[ClientConnection], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """Run `what` on a connection through the proxy."""

    async def run() -> Any:
        options.setdefault("subprotocols", [Subprotocol("realtime")])
        address = f"{url.replace('http', 'ws')}/v1/realtime?model=rt-1"
        async with connect(address, additional_headers=KEYED, max_size=None, proxy=None, compression=None, **options) as connection:
            return await asyncio.wait_for(what(connection), 20)

    return asyncio.run(run())


def test_text_and_bytes_and_pings_go_both_ways_and_a_close_keeps_its_code(start, realtime):
    async def what(connection: ClientConnection) -> None:
        for message in ("hello", "Grüße 🌍", b"\0\xff" * 5, b"", "x" * 3_000_000, bytes(2_000_000)):
            await connection.send(message)
            assert await connection.recv() == message
        await (await connection.ping(b"still there?"))
        await connection.close(4001, "enough")

    proxy = start(teacher_url=f"http://127.0.0.1:{realtime.port}/v1")
    talk(proxy.url, what)
    request = realtime.requests[0]
    assert request.path == "/v1/realtime?model=rt-1"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Host"] == f"127.0.0.1:{realtime.port}"
    until(lambda: [code for _, code in realtime.ended] == [4001])


def test_the_server_may_speak_first_ping_and_close_with_a_reason(start, realtime):
    async def greet(connection: ServerConnection) -> None:
        await connection.send('{"type": "session.created"}')
        await (await connection.ping())
        await connection.close(4008, "session expired")

    async def what(connection: ClientConnection) -> None:
        assert await connection.recv() == '{"type": "session.created"}'
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert (connection.close_code, connection.close_reason) == (4008, "session expired")

    realtime.talk = greet
    talk(start(teacher_url=f"http://127.0.0.1:{realtime.port}/v1").url, what)


def test_a_refused_upgrade_is_an_answer_like_any_other(start, realtime):
    proxy = start(teacher_url=f"http://127.0.0.1:{realtime.port}/v1")
    error = orjson.dumps({"error": {"message": "who are you?"}})
    for status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.OK):
        headers = [("Content-Length", str(len(error))), ("Retry-After", "7"), ("Content-Type", "application/json")]
        realtime.refuse = Response(status, "X", Headers(headers), error)
        with pytest.raises(InvalidStatus) as refused:
            talk(proxy.url, lambda connection: connection.recv())
        answer = refused.value.response
        assert (answer.status_code, answer.body) == (status, error)
        assert answer.headers["Retry-After"] == "7"
        assert answer.headers["x-stillroom-served-by"] == "teacher"
        assert "Upgrade" not in answer.headers


def test_a_teacher_that_is_away_is_told_in_openais_shape(start, teacher):
    teacher.stop()
    with pytest.raises(InvalidStatus) as refused:
        talk(start().url, lambda connection: connection.recv())
    assert refused.value.response.status_code == 502
    assert orjson.loads(refused.value.response.body or b"")["error"]["code"] == "teacher_unreachable"


def test_a_client_that_leaves_frees_the_teacher_and_a_teacher_that_leaves_the_client(start, realtime):
    proxy = start(teacher_url=f"http://127.0.0.1:{realtime.port}/v1")

    async def vanish(connection: ClientConnection) -> float:
        await connection.send("hello")
        await connection.recv()
        connection.transport.abort()
        return time.monotonic()

    left = talk(proxy.url, vanish)
    until(lambda: realtime.ended, 2)
    assert realtime.ended[0][0] - left < 1
    assert realtime.ended[0][1] == 1006

    async def leave(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.abort()

    async def what(connection: ClientConnection) -> float:
        began = time.monotonic()
        await connection.send("go")
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1006
        return time.monotonic() - began

    realtime.talk = leave
    assert talk(proxy.url, what) < 1
    until(lambda: not any(each.busy for each in proxy._server.config.loaded_app.connections))


def test_a_teacher_that_agrees_and_leaves_at_once_is_an_end_and_no_failure_of_ours(start, teacher, caplog):
    async def agree(exchange: Any) -> bool:
        await exchange.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nlast words")
        return False

    teacher.reply = agree
    proxy = start()
    for _ in range(20):
        with Wire(proxy.url) as wire:
            said = wire.send(UPGRADE).answer()
            assert (said.status, said.header("upgrade")) == (101, "websocket")
            assert wire.rest() == b"last words"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_a_client_sends_before_the_teacher_has_agreed_is_kept_for_it_and_not_more_than_some(start, teacher):
    agreed = threading.Event()
    got = bytearray()

    async def late(exchange: Any) -> None:
        await asyncio.to_thread(agreed.wait, 10)
        await exchange.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while part := await exchange.reader.read(65536):
            got.extend(part)

    teacher.reply = late
    proxy, early = start(), bytes(range(256)) * 40
    with Wire(proxy.url, 1.0) as wire:
        wire.send(UPGRADE + early[:5000])
        until(lambda: teacher.seen)
        wire.send(early[5000:])
        sent, block = 0, b"z" * 100_000
        with contextlib.suppress(TimeoutError):
            while sent < 100_000_000:
                sent += wire.socket.send(block)
        assert sent < 20_000_000
        agreed.set()
        wire.socket.settimeout(10)
        assert wire.answer().status == 101
        until(lambda: len(got) == len(early) + sent)
        assert bytes(got[: len(early)]) == early


def test_who_reads_slowly_slows_the_other_down(start, realtime):
    sent = [0, 0]

    async def flood(connection: ServerConnection) -> None:
        while sent[0] < 100_000_000:
            await connection.send(b"x" * 100_000)
            sent[0] += 100_000

    async def sleep(connection: ClientConnection) -> None:
        await asyncio.sleep(1)
        assert 0 < sent[0] < 30_000_000
        for _ in range(1000):
            assert len(await connection.recv()) == 100_000

    realtime.talk = flood
    proxy = start(teacher_url=f"http://127.0.0.1:{realtime.port}/v1")
    talk(proxy.url, sleep, max_queue=1)

    async def doze(connection: ServerConnection) -> None:
        await asyncio.sleep(1)
        async for message in connection:
            sent[1] -= len(message)

    async def pour(connection: ClientConnection) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.7):
                while True:
                    await connection.send(b"x" * 100_000)
                    sent[1] += 100_000
        assert 0 < sent[1] < 30_000_000

    realtime.talk = doze
    talk(proxy.url, pour)


def test_the_operators_key_replaces_the_clients_wherever_it_is(start, realtime):
    proxy = start(teacher_url=f"http://127.0.0.1:{realtime.port}/v1", teacher_key="sk-operator")
    protocols = [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{KEY}"), Subprotocol("openai-beta.realtime-v1")]

    async def what(connection: ClientConnection) -> None:
        assert connection.subprotocol == "realtime"
        await connection.send("hello")
        await connection.recv()

    talk(proxy.url, what, subprotocols=protocols)
    request = realtime.requests[0]
    assert request.headers.get_all("Authorization") == ["Bearer sk-operator"]
    assert KEY not in str(request.headers)
    assert "openai-beta.realtime-v1" in request.headers["Sec-WebSocket-Protocol"]


def test_a_websocket_behind_other_requests_of_its_connection_waits_for_them(start, teacher):
    async def both(exchange: Any) -> bool | None:
        if not exchange.seen.header("upgrade"):
            return bool(await json({"asked": exchange.seen.target}, pause=0.1)(exchange))
        await exchange.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        await exchange.write(await exchange.reader.read(100))
        return False

    teacher.reply = both
    with Wire(start().url) as wire:
        wire.send(post(orjson.dumps(chat())) + post(b"{}", "/v1/embeddings") + UPGRADE + b"echo")
        assert b"chat/completions" in wire.answer().body
        assert b"embeddings" in wire.answer().body
        assert wire.answer().status == 101
        assert wire.rest() == b"echo"


def test_a_stop_ends_open_sockets_after_its_limit(start, realtime):
    proxy = start(teacher_url=f"http://127.0.0.1:{realtime.port}/v1")
    proxy._server.config.timeout_graceful_shutdown = 1

    async def what(connection: ClientConnection) -> None:
        await connection.send("hello")
        await connection.recv()
        proxy._server.should_exit = True
        with pytest.raises(ConnectionClosed):
            await connection.recv()

    talk(proxy.url, what)
    until(lambda: realtime.ended, 2)
    proxy.stop()


def test_a_client_that_leaves_before_the_teacher_has_answered_frees_it(start, teacher):
    teacher.reply = hang
    with Wire(start().url) as wire:
        wire.send(UPGRADE)
        until(lambda: teacher.seen)
    assert teacher.seen[0].left.wait(1)
