"""HTTP/1.1 to an upstream at a twentieth of an ordinary client's cost: asyncio protocols, httptools, kept connections.

Bytes as they come: nothing is decoded, followed or remembered but open connections. Measured in `make bench-proxy`.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httptools

from proxy.errors import Broken, TimedOut, Unreachable, UpstreamError
from proxy.headers import Headers
from proxy.websocket import Relay

KEPT_SECONDS = 55.0  # idle; below the minute after which common servers and balancers close
KEPT_CONNECTIONS = 512  # idle, for each origin
HIGH_WATER = 256 * 1024  # bytes of a body that wait for a slow client before the upstream is no longer read
HEAD_BYTES = 1 << 20  # largest head of an answer

Origin = tuple[str, int, bool]  #: host, port, TLS


class Pool:
    """Connections to any origins, kept while idle, as many in use as there are exchanges."""

    def __init__(self, *, connect_timeout: float, read_timeout: float, certificates: Callable[[], ssl.SSLContext]) -> None:
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._certificates = certificates
        self._idle: dict[Origin, list[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def ask(
        self,
        origin: Origin,
        name: str,
        head: bytes,
        body: bytes | AsyncIterator[bytes],
        *,
        chunked: bool,
        bodiless: bool,
        upgrades: bool = False,
        fresh: bool = False,
    ) -> "Http1Answer":
        """Send one request and return when its answer's head is here; `name` is what errors call the origin.

        `head` ends with the empty line. `chunked`: a streamed body is sent so. `bodiless`: the answer to HEAD has no body.
        `upgrades`: the request asks for another protocol, and with 101 the connection is the answer's (`Http1Answer.hand_over`).
        `fresh`: on no kept connection. A kept one that turns out to have died before any byte of an answer is replaced once by a
        new one, where the body can be sent again. Raises UpstreamError.
        """
        for anew in (True,) if fresh else (False, True):
            connection = (None if anew else self._kept(origin)) or await self._connect(origin, name)
            answer = Http1Answer(connection, name)
            connection.begin(answer, bodiless=bodiless, upgrades=upgrades)
            try:
                if isinstance(body, bytes):
                    connection.write(head, body)
                else:
                    await connection.stream(head, body, chunked=chunked)
                await answer.head()
            except Broken:
                if connection.answering or not connection.reused or not isinstance(body, bytes):
                    raise
                continue
            except BaseException:
                connection.abort()
                raise
            return answer
        raise AssertionError("unreachable")

    def offer(
        self, origin: Origin, name: str, head: bytes, body: bytes, then: Callable[["Http1Answer"], None]
    ) -> "Http1Answer | None":
        """Send one request if a connection is kept; None if there is none. `then` is called once: the answer's head is here (and
        perhaps all of it), or `error` says why there will be none. Without a task, at half the cost of `ask`.
        """
        connection = self._kept(origin)
        if connection is None:
            return None
        answer = Http1Answer(connection, name)
        answer.then = then
        connection.begin(answer, bodiless=False, upgrades=False)
        connection.write(head, body)
        return answer

    async def close(self) -> None:
        """Cut every connection."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in [*self._open]:
            connection.abort()

    def release(self, connection: "_Connection") -> None:
        """An exchange has ended, and its connection can serve another."""
        idle = self._idle.setdefault(connection.origin, [])
        if len(idle) < KEPT_CONNECTIONS:
            idle.append(connection)
        else:
            connection.abort()

    def forget(self, connection: "_Connection") -> None:
        """A connection is lost."""
        self._open.discard(connection)
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)

    def _kept(self, origin: Origin) -> "_Connection | None":
        """The idle connection that was used last: it is the least likely to have been closed meanwhile."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.usable:
                connection.reused = True
                return connection
        return None

    async def _connect(self, origin: Origin, name: str) -> "_Connection":
        host, port, tls = origin
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, origin, name), host, port, ssl=self._certificates() if tls else None
                )
        except TimeoutError as error:
            raise Unreachable(f"cannot connect to {name}: no answer within {self._connect_timeout:g} s") from error
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"cannot connect to {name}: {error or type(error).__name__}") from error
        self._open.add(connection)
        if self._sweeping is None:
            self._sweep()
        return connection

    def _sweep(self) -> None:
        """Once a second, or more often for a short timeout: end the silent exchanges and the connections nobody uses."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [*self._open]:
            connection.check(now, self._read_timeout)
        again = min(1.0, self._read_timeout / 4)
        self._sweeping = loop.call_later(again, self._sweep) if self._open else None


class Http1Answer:
    """One exchange's answer: the head at once, the body as it comes."""

    def __init__(self, connection: "_Connection", name: str) -> None:
        self.status = 0
        self.headers: Headers = []
        self.error: UpstreamError | None = None  #: why it has ended too early
        self.answering = False  #: a byte of it had come before it ended so
        self.then: Callable[[Http1Answer], None] | None = None  #: see `Pool.offer`
        self.sink: Callable[[bytes], bool] | None = None
        self._refused = False  # by the sink: the first of the parts
        self._name = name
        self._connection: _Connection | None = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._whole = False
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Wait until status and headers are here. Raises UpstreamError."""
        while not self.status:
            if self.error is not None:
                raise self.error
            await self._wait()

    def ready(self) -> bytes | None:
        """The whole body, if all of it is here; else None."""
        if not self._whole:
            return None
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def hand_over(self, relay: Relay) -> None:
        """After a 101: from now on what comes and goes on the connection is the relay's."""
        assert self._connection is not None
        self._connection.hand_over(relay, b"".join(self._parts))
        self._connection = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            if self._parts:
                # a part that the sink has looked at and not taken comes alone, without what came behind it
                many = 1 if self._refused else len(self._parts)
                parts, self._parts, self._refused = self._parts[:many], self._parts[many:], False
                self._size = sum(map(len, self._parts))
                if self._connection is not None:
                    self._connection.read_on()
                yield parts[0] if len(parts) == 1 else b"".join(parts)
            elif self._whole:
                return
            elif self.error is not None:
                raise self.error
            else:
                await self._wait()

    async def close(self) -> None:
        """Cut the connection if there is more to come."""
        self.drop()

    def drop(self) -> None:
        """As `close`; `then` is not called any more."""
        self.then = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    # What the connection tells.

    def began(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    def add(self, part: bytes) -> bool:
        """A part of the body. True while more of it may be read."""
        self._parts.append(part)
        self._size += len(part)
        return self._size <= HIGH_WATER

    def ended(self) -> None:
        """All of it is here; `wake` follows."""
        self._whole, self._connection = True, None

    def failed(self, error: UpstreamError) -> None:
        if self._connection is not None:
            self.answering, self._connection = self._connection.answering, None
        self.error = error
        self.wake()

    def wake(self) -> None:
        then = self.then
        if then is not None and (self.status or self.error is not None):
            self.then = None
            then(self)
            return
        if self.sink is not None and self._parts and self._waiter is not None:  # whoever walks the body waits for more
            part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            taken = self.sink(part)
            self._parts, self._size = ([], 0) if taken else ([part], self._size)
            self._refused = not taken
            if taken and not self._whole and self.error is None:
                return
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, pool: Pool, origin: Origin, name: str) -> None:
        self.origin = origin
        self.reused = False
        self.answering = False  #: a byte of an answer has come in the present exchange
        self._name = name
        self._pool = pool
        self._transport: Any = None
        self._parser: Any = httptools.HttpResponseParser(self)
        # Length and chunking together: chunking counts (RFC 9112, 6.3), and the length is not passed on.
        self._parser.set_dangerous_leniencies(lenient_chunked_length=True)
        self._answer: Http1Answer | None = None
        self._relay: Relay | None = None  # it speaks something else than HTTP by now
        self._bodiless = self._upgrades = False
        self._headers: Headers = []
        self._head_bytes = 0
        self._in_head = True
        self._until_close = False  # neither length nor chunks: the connection's end is the body's
        self._reading = True
        self._sending = False  # the request's body is not whole yet
        self._writable: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._active = self._loop.time()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, answer: Http1Answer, *, bodiless: bool, upgrades: bool) -> None:
        self._answer, self._bodiless, self._upgrades, self.answering = answer, bodiless, upgrades, False
        self._headers, self._head_bytes, self._in_head, self._until_close = [], 0, True, False
        self._active = self._loop.time()

    def write(self, head: bytes, body: bytes) -> None:
        if len(body) < 65_536:
            self._transport.write(head + body)
        else:
            self._transport.writelines([head, body])

    async def stream(self, head: bytes, body: AsyncIterator[bytes], *, chunked: bool) -> None:
        """Send a body as it comes in; stop where the upstream answers before its end."""
        self._sending = True
        self._transport.write(head)
        async for part in body:
            if self._answer is None or self._answer.status:
                return
            self._transport.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            self._active = self._loop.time()
            if self._writable is not None:
                await self._writable
        if chunked:
            self._transport.write(b"0\r\n\r\n")
        self._sending = False

    def hand_over(self, relay: Relay, data: bytes) -> None:
        self._answer, self._relay = None, relay
        relay.open(self._transport, data)

    def read_on(self) -> None:
        """The client has taken what there was."""
        if not self._reading:
            self._reading = True
            self._active = self._loop.time()
            self._transport.resume_reading()

    def check(self, now: float, read_timeout: float) -> None:
        silent = now - self._active
        if self._relay is not None:
            return
        if self._answer is None:
            if silent > KEPT_SECONDS:
                self.abort()
        elif self._reading and silent > read_timeout:
            self._fail(TimedOut(f"{self._name} was silent for too long"))

    def abort(self) -> None:
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if self._relay is not None:
            self._relay.from_upstream(data)
            return
        if answer is None:
            self._transport.abort()  # bytes that nobody asked for
            return
        self.answering = True
        self._active = self._loop.time()
        if self._upgrades and answer.status == 101:  # and nobody has taken it over yet
            answer.add(data)
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._fail(Broken(f"{self._name} sent a head of more than {HEAD_BYTES:,} bytes"))
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._upgrades or answer.status != 101:
                self._fail(Broken(f"{self._name} changed the protocol without being asked"))
                return
            if upgrade.args[0] < len(data):
                answer.add(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._fail(Broken(f"what {self._name} sent is no HTTP"))  # or what is behind a whole answer, which counts
        answer.wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        if self._relay is not None:
            self._relay.upstream_lost()
            return
        self.resume_writing()
        if self._answer is None:
            return
        if error is None and self._until_close and not self._in_head:
            answer, self._answer = self._answer, None
            answer.ended()
            answer.wake()
        else:
            self._fail(Broken(f"the connection to {self._name} was lost"))

    def pause_writing(self) -> None:
        if self._relay is not None:
            self._relay.upstream_full()
            return
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._relay is not None:
            self._relay.upstream_ready()
            return
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # httptools

    def on_message_begin(self) -> None:
        if self._answer is None:  # behind an answer: the next client's would begin with it
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # later ones are trailers
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 and not (status == 101 and self._upgrades):
            self._headers = []
            return
        self._in_head = False
        headers = self._headers
        self._until_close = status not in (204, 304) and not any(n in (b"content-length", b"transfer-encoding") for n, _ in headers)
        if self._answer is None:
            return
        self._answer.began(status, headers)
        if self._bodiless:  # the parser would wait for what the headers announce
            answer, self._answer = self._answer, None
            answer.ended()
            self._transport.close()

    def on_body(self, body: bytes) -> None:
        if self._answer is not None and not self._answer.add(body) and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._in_head or self._answer is None:  # an interim answer, or one that was given up
            return
        if self._upgrades and self._answer.status == 101:
            return
        answer, self._answer = self._answer, None
        keep = self._parser.should_keep_alive() and not self._until_close and not self._sending
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        if keep:
            self._pool.release(self)
        else:
            self._transport.close()
        answer.ended()

    def _fail(self, error: UpstreamError) -> None:
        answer, self._answer = self._answer, None
        if self._transport is not None:
            self._transport.abort()
        if answer is not None:
            answer.failed(error)
