"""The client's end of one exchange: its request in, our answer out, and whether it is still there."""

import asyncio
import http
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from proxy.errors import Refusal
from proxy.head import Head
from proxy.headers import Headers
from proxy.spool import NotKept
from store import ids
from store.keys import KeyView

HIGH_WATER = 256 * 1024  # bytes of a request's body that wait before the client is no longer read
_BODILESS = {101, 204, 304}
_RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: on, for no time
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Gone(Exception):
    """The client closed its connection before its request was whole."""


class Connection(Protocol):
    """What an exchange needs of the connection it came in on: `proxy.server`."""

    transport: Any

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def done(self, client: "Client") -> None:
        """The answer is whole, and the next exchange can begin."""

    @property
    def full(self) -> bool:
        """Whether the client reads slower than we send."""

    async def writable(self) -> None:
        """Wait while it does."""


class Client:
    """One request on a connection. Its methods are for the task that handles the request; what the connection tells stands last."""

    # uvicorn keeps the last request of a connection as its "cycle" and looks at these.
    response_complete = False
    disconnected = False

    def __init__(
        self,
        connection: Connection,
        method: str,
        raw_path: bytes,
        query: bytes,
        head: Head,
        length: bytes | None,
        *,
        keep_alive: bool,
        expects: bool,
        old: bool,
    ) -> None:
        """`length` is what content-length says. `expects`: the client waits for a 100. `old`: it speaks HTTP/1.0."""
        self.method = method
        self.raw_path = raw_path
        self.query = query
        self.head = head
        self.length = length  #: of the body, as announced
        self.key: KeyView | None = None  #: the virtual key that it came under
        self.keep_alive = keep_alive
        self.gone = False
        self.started = False
        self.finishing = False  #: the last part is ready, and waits for the capture
        self.message_event = self  # of uvicorn's cycle: `set` does nothing here
        self._connection = connection
        self._transport = connection.transport
        self._expects = expects
        self._old = old
        self._id = ""
        self._task: asyncio.Task[None] | None = None
        self._leave: Callable[[], None] | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._whole = False
        self._gathers = False
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""
        self._chunked = False
        self._until_close = False

    @property
    def id(self) -> str:
        """What x-stillroom-id says."""
        self._id = self._id or ids.new("req")
        return self._id

    @id.setter
    def id(self, id: str) -> None:
        self._id = id

    def header(self, name: bytes) -> str | None:
        """A request header's first value; None if it is absent. Not for content-length: see `length`."""
        value = self.head.named.get(name)
        return None if value is None else value.decode("latin-1").strip()

    async def body(self, limit: int) -> bytes:
        """The whole request body. Raises Refusal above `limit` bytes, Gone."""
        if self.length is not None and int(self.length) > limit:
            raise _too_large(limit)
        self._gathers = True
        while not self._whole:
            await self._more()
            if self._size > limit:
                break
        if self._size > limit:
            self._parts = []
            raise _too_large(limit)
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The request body as it comes in; watches from its end on. Raises Gone."""
        while True:
            parts, self._parts = self._parts, []
            self._size -= sum(map(len, parts))
            for part in parts:
                yield part
            if self._whole and not self._parts:
                break
            if not self._parts:
                await self._more()
        self.watch()

    def peek(self) -> bytes | None:
        """The whole body, if it is here already; else None."""
        if not self._whole:
            return None
        if len(self._parts) != 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    def watch(self, leave: Callable[[], None] | None = None) -> None:
        """From now on `leave` is called (without one: the task that handles the request is cancelled), and `gone` is true, as soon
        as the client has closed its connection.
        """
        self._leave = leave or self.cancel
        if self.gone:
            self._leave()

    def start(self, status: int, headers: Headers, *, hold: bool = False) -> None:
        """Send the answer's head; with `hold` together with the first part of its body. It frames the body by what it says."""
        self.started = True
        parts = [status_line(status)]
        framed = status in _BODILESS or self.method == "HEAD"
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            framed = framed or name == b"content-length"
        if not framed:
            self._chunked, self._until_close = not self._old, self._old
            parts.append(b"transfer-encoding: chunked\r\n" if self._chunked else b"")
        if self._expects and not self._whole:  # it may now send its body or not: nobody could tell that from its next request
            self.keep_alive = False
        if self._until_close or not self.keep_alive:
            self.keep_alive = False
            parts.append(b"connection: close\r\n")
        elif self._old:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)
        if not hold:
            self._write(b"")

    async def send(self, chunk: bytes) -> None:
        """Send a part of the answer's body; waits while the client reads slower than we send."""
        if not self.gone:
            self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)
            await self._connection.writable()

    def push(self, chunk: bytes) -> bool:
        """As `send`, if nothing has to be waited for; else False, and nothing is sent."""
        if self.gone or self._connection.full:
            return False
        self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)
        return True

    def finish(self, chunk: bytes = b"") -> None:
        """Send the last part. An answer that is never finished breaks the client's connection, as it must."""
        self._leave = None
        if self.gone or self.response_complete:
            return
        if self._chunked:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk) if chunk else b"0\r\n\r\n")
        else:
            self._write(chunk)
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        self._connection.done(self)

    def refuse(self, refusal: Refusal, added: Headers) -> None:
        """Send an error of our own."""
        if self.started:
            self.cut()
            return
        body = refusal.body
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *getattr(refusal, "headers", [])]
        self.start(refusal.status, [*head, *added], hold=True)
        self.finish(b"" if self.method == "HEAD" else body)

    def cut(self) -> None:
        """Break the connection off, such that the client does not take what it has for all there is."""
        if self._until_close:  # its end would be taken for the body's: a reset is none
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self._transport.close()

    def acknowledge(self, chunk: bytes, added: Headers) -> Callable[[NotKept | None], None]:
        """What to do when the capture is durable: send the last part, or refuse where it is not kept and has to be."""
        self.finishing = True

        def then(error: NotKept | None) -> None:
            if error is None:
                self.finish(chunk)
            else:
                self._head, self.started = b"", self.started and not self._head
                self.refuse(not_kept(error), added)

        return then

    # What the connection tells.

    def handled_by(self, task: "asyncio.Task[None]") -> None:
        """A task handles it from now on."""
        self._task, self._leave = task, None

    def feed(self, part: bytes) -> None:
        """A part of the body has come."""
        if self.response_complete:
            return  # what is left of a body that nobody waits for
        self._parts.append(part)
        self._size += len(part)
        if self._size > HIGH_WATER and not self._gathers:
            self._connection.pause_reading()
        self._wake()

    def fed(self) -> None:
        """The body is whole."""
        self._whole = True
        self._wake()

    def lost(self) -> None:
        """The connection is lost."""
        self.gone = self.disconnected = True
        self._wake()
        if self._leave is not None:
            self._leave()

    def leave(self) -> None:
        """The server stops."""
        if self._leave is not None:
            self._leave()
        else:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the task that handles it."""
        if self._task is not None:
            self._task.cancel()

    def set(self) -> None:
        """See `message_event`."""

    async def _more(self) -> None:
        """Wait for more of the body, or for its end."""
        if self.gone:
            raise Gone
        if self._expects:
            self._expects = False
            self._transport.write(_CONTINUE)
        self._connection.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
        if self.gone and not self._whole:
            raise Gone

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._transport.write(data)


def not_kept(why: NotKept) -> Refusal:
    """What a client is told where the policy is to answer nothing that cannot be captured."""
    message = f"Nothing can be captured now, and STILLROOM_WHEN_FULL=refuse says not to answer then: {why}."
    return Refusal(503, "not_captured", message)


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}


def _too_large(limit: int) -> Refusal:
    """What a client is told whose body is larger than `limit` bytes."""
    return Refusal(413, "body_too_large", f"The request body is larger than {limit:,} bytes (STILLROOM_MAX_BODY_BYTES).")
