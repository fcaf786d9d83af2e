"""A fast teacher on the harness's own event loop: every answer is different, and is told by its request's `user`."""

import asyncio
import random
from typing import Any

import orjson

FILLER = random.Random(3).randbytes(150_000).hex().encode()


class Teacher:
    """Answers `asked` requests until `close`. `delay`: most seconds of silence before an answer, `pause`: between two events."""

    def __init__(self, *, delay: float = 0.03, pause: float = 0.01, words: int = 5) -> None:
        self.delay, self.pause, self.words = delay, pause, words
        self.asked: set[int] = set()  #: numbers of the requests that have arrived here
        self.open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def start(self) -> str:
        """Its base URL."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20, backlog=2048)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                request = orjson.loads(await reader.readexactly(length))
                self.asked.add(int(request["user"]))
                self.open += 1
                try:
                    await (self._stream if request.get("stream") else self._answer)(writer, request)
                finally:
                    self.open -= 1
        except (OSError, asyncio.IncompleteReadError):
            pass  # the proxy has left
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        await asyncio.sleep(random.random() * self.delay)
        number = int(request["user"])
        body = orjson.dumps(_completion(number, "message", {"role": "assistant", "content": text(number)}, "stop"))
        if writer.is_closing():
            raise ConnectionResetError
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        number = int(request["user"])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        words = text(number)
        for start in range(0, len(words), step := -(-len(words) // self.words)):
            _event(writer, orjson.dumps(_completion(number, "delta", {"content": words[start : start + step]}, None)))
            await writer.drain()
            await asyncio.sleep(self.pause)
        _event(writer, orjson.dumps(_completion(number, "delta", {}, "stop")))
        _event(writer, b"[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def text(number: int) -> str:
    """What the teacher says to a request: a hundredth of the answers are long ones."""
    chosen = random.Random(number)
    length = chosen.randrange(60_000, 200_000) if chosen.random() < 0.01 else chosen.randrange(20, 600)
    start = chosen.randrange(len(FILLER) - length)
    return f"answer {number}: {FILLER[start : start + length].decode()}"


def _completion(number: int, key: str, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
    kind = "chat.completion" if key == "message" else "chat.completion.chunk"
    choice = {"index": 0, key: said, "finish_reason": finish}
    return {"id": f"c-{number}", "object": kind, "created": 1, "model": "big-1", "choices": [choice]}


def _event(writer: asyncio.StreamWriter, data: bytes) -> None:
    if writer.is_closing():
        raise ConnectionResetError
    writer.write(b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data))
