"""The client's end of one exchange: its body in, our answer out, and whether it is still there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from proxy.errors import Refusal
from proxy.headers import Headers, first
from store import ids

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gone(Exception):
    """The client closed its connection before its request was whole."""


class Client:
    """An ASGI scope, receive and send, for the task that handles the request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.id = ids.new("req")  #: what x-stillroom-id says
        self.gone = False
        self.started = False
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None

    def header(self, name: bytes) -> str | None:
        """A request header's first value; None if it is absent."""
        return first(self.headers, name)

    async def body(self, limit: int) -> bytes:
        """The whole request body. Raises Refusal above `limit` bytes, Gone."""
        announced = self.header(b"content-length")
        if announced is not None and int(announced) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        async for part in self._parts():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise _too_large(limit)
        return b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The request body as it comes in; watches from its end on. Raises Gone."""
        async for part in self._parts():
            yield part
        self.watch()

    def watch(self) -> None:
        """From now on the current task is cancelled, and `gone` is true, as soon as the client has closed its connection.

        The server does not tell on sending, and nothing else tells while the upstream is silent.
        """
        if self._watcher is None:
            task = asyncio.current_task()
            assert task is not None
            self._watcher = asyncio.create_task(self._watch(task))

    def unwatch(self) -> None:
        """The answer is whole: what the client does now is its own business."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the answer's head."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, chunk: bytes) -> None:
        """Send a part of the answer's body; waits while the client reads slower than we send."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self, chunk: bytes = b"") -> None:
        """Send the last part. An answer that is never finished breaks the client's connection, as it must."""
        self.unwatch()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def refuse(self, refusal: Refusal, added: Headers) -> None:
        """Send an error of our own."""
        body = refusal.body
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self.start(refusal.status, [*head, *added])
        await self.finish(body)

    async def _parts(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise Gone
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # what is left of a body that the upstream did not wait for
        self.gone = True
        task.cancel()


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The request body is larger than {limit:,} bytes (STILLROOM_MAX_BODY_BYTES).")
