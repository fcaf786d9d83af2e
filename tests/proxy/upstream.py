"""A real HTTP/1.1 server on a free port that answers as a test tells it to: as a teacher, as a student, or badly."""

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

Headers = list[tuple[str, str]]


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: Headers
    body: bytes
    connection: int
    left: threading.Event = field(default_factory=threading.Event)  #: set when the peer has closed the connection

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Exchange:
    """One request and the way back."""

    seen: Seen
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def head(self, status: int = 200, headers: Headers | None = None) -> None:
        lines = [f"HTTP/1.1 {status} X", *(f"{key}: {value}" for key, value in headers or [])]
        await self.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


#: Answers one request; True keeps the connection, False closes it, None aborts it.
Reply = Callable[[Exchange], Awaitable[bool | None]]


class Upstream:
    """Set `reply`; read `seen`. `stop` and `start` again on the same port make it refuse connections and come back."""

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._tls = tls
        self.seen: list[Seen] = []
        self.reply: Reply = json(completion("from the upstream"))
        self.early: Reply | None = None  #: answers before the request's body is read
        self.port = port
        self._connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self.start()

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), daemon=True)
        self._thread.start()
        assert started.wait(5)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._halt.set)
            self._thread.join(5)

    async def _run(self, started: threading.Event) -> None:
        self._loop, self._halt = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 24, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._halt.wait()
        server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number, keep = self._connections, True
        self._open.add(writer)
        try:
            while keep:
                seen = await _head(reader, number)
                self.seen.append(seen)
                if self.early is None:
                    await _body(reader, seen)
                answered = await (self.early or self.reply)(Exchange(seen, reader, writer))
                if answered is None:
                    writer.transport.abort()
                keep = bool(answered)
        except asyncio.IncompleteReadError:
            pass
        except ConnectionError:
            if self.seen:
                self.seen[-1].left.set()
        finally:
            self._open.discard(writer)
            writer.close()


def completion(text: str, **choice: Any) -> dict[str, Any]:
    """A chat.completion body."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    return {"id": "c-1", "object": "chat.completion", "created": 1, "model": "as-served", "choices": choices, "usage": usage}


def events(*words: str, finish: str = "stop", done: bool = True) -> list[bytes]:
    """The events of a chat.completion.chunk stream: role, a word each, finish, [DONE]."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    chunks = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    chunks.append({"index": 0, "delta": {}, "finish_reason": finish})
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "as-served"}
    lines = [b"data: " + orjson.dumps({**head, "choices": [chunk]}) + b"\n\n" for chunk in chunks]
    return [*lines, b"data: [DONE]\n\n"] if done else lines


def json(body: Any, status: int = 200, headers: Headers | None = None, pause: float = 0.0) -> Reply:
    """A whole answer; `body` is bytes or what becomes JSON."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)

    async def reply(exchange: Exchange) -> bool:
        await asyncio.sleep(pause)
        framing = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
        await exchange.head(status, [*framing, *(headers or [])])
        await exchange.write(data if exchange.seen.method != "HEAD" else b"")
        return True

    return reply


def stream(chunks: list[bytes], pause: float = 0.0, after: str = "end", headers: Headers | None = None) -> Reply:
    """An event stream, a chunk at a time; `after` them it ends, or the connection is "cut", or it "hang"s until the peer leaves."""

    async def reply(exchange: Exchange) -> bool | None:
        await exchange.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"), *(headers or [])])
        for chunk in chunks:
            await exchange.chunk(chunk)
            await asyncio.sleep(pause)
        if after == "cut":
            return None
        if after == "hang":
            return await hang(exchange)
        await exchange.write(b"0\r\n\r\n")
        return True

    return reply


async def hang(exchange: Exchange) -> None:
    """Says nothing, and notes when the peer leaves."""
    while await exchange.reader.read(4096):
        pass
    exchange.seen.left.set()


async def abort(_: Exchange) -> None:
    """Breaks the connection unanswered."""


async def _head(reader: asyncio.StreamReader, connection: int) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = [(key, value.strip()) for key, _, value in (line.partition(":") for line in head[1:] if line)]
    return Seen(method, target, headers, b"", connection)


async def _body(reader: asyncio.StreamReader, seen: Seen) -> None:
    if seen.header("transfer-encoding"):
        while size := int(await reader.readline(), 16):
            seen.body += (await reader.readexactly(size + 2))[:size]
        await reader.readline()
    elif seen.header("content-length"):
        seen.body = await reader.readexactly(int(seen.header("content-length")[0]))
