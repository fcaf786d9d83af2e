"""uvicorn's connection, on which /v1 is served without ASGI: no scope, no events, no second task for a client that leaves.

Everything else (the proxy's own pages) goes through uvicorn to FastAPI as ever. It leans on how `HttpToolsProtocol` keeps the
requests of a connection ("cycle", "pipeline"): pyproject.toml says for which versions, tests/proxy/test_server.py whether it holds.
"""

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.app import Proxy
from proxy.client import Client, status_line
from proxy.errors import Refusal
from proxy.head import Head
from proxy.websocket import Relay

log = logging.getLogger("stillroom.proxy")

HEAD_BYTES = 256 * 1024  # of a request: 431 above


class Connection(HttpToolsProtocol):
    """One connection of a client; one of its requests at a time is handled, the others wait."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._proxy: Proxy = self.app
        self._active: Client | None = None
        self._pending: Client | None = None  # its body is not whole, and nobody has begun to answer it
        self._idle_since = self.loop.time()
        self._head: Head | None = None  # of the last request, as the next one's is mostly the same
        self._head_bytes = 0  # received since the last of a body: a head, trailers, what is written beside a chunk's size
        self._in_head = False
        self._stays = False  # it is asked for another protocol than WebSocket
        self._drained: asyncio.Future[None] | None = None
        self.relay: Relay | None = None  #: of a connection that speaks something else than HTTP by now

    # What a Client asks for.

    def pause_reading(self) -> None:
        self.flow.pause_reading()

    def resume_reading(self) -> None:
        self.flow.resume_reading()

    def done(self, client: Client) -> None:
        if self._active is client:
            self._active = None
            self._proxy.counters.in_flight -= 1
        if self.pipeline:
            self.on_response_complete()
        else:
            self.flow.resume_reading()
            self._idle_since = self.loop.time()

    @property
    def full(self) -> bool:
        return self._drained is not None

    async def writable(self) -> None:
        if self._drained is not None:
            await asyncio.shield(self._drained)

    # What the application asks for.

    @property
    def busy(self) -> bool:
        return self._active is not None

    def leave(self) -> None:
        if self._active is not None:
            self._active.leave()

    def tick(self) -> None:
        busy = self._active or self.relay or (self.cycle and not self.cycle.response_complete)
        if not busy and self.loop.time() - self._idle_since > self.timeout_keep_alive:
            self.transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._proxy.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self.relay is not None:
            self.relay.from_client(data)
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self.relay is not None:
                self.relay.from_client(rest)
            else:
                self._stay(rest)
        except httptools.HttpParserError:
            if not self.transport.is_closing():
                self._refuse(Refusal(400, "bad_http", "What came on this connection is no HTTP/1.1 request."))
            return
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(Refusal(431, "headers_too_large", f"The request's headers are larger than {HEAD_BYTES:,} bytes."))
            return
        pending, self._pending = self._pending, None
        if pending is not None:  # its body takes time: answering begins without it
            self._begin(pending)

    def connection_lost(self, exc: Exception | None) -> None:
        self._resume()
        self._proxy.connections.discard(self)
        active, self._active = self._active, None
        if active is not None:
            self._proxy.counters.in_flight -= 1
            active.lost()
        if self.relay is not None:
            self.relay.client_lost()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._drained is None:
            self._drained = self.loop.create_future()
        if self.relay is not None:
            self.relay.client_full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resume()
        if self.relay is not None:
            self.relay.client_ready()

    # httptools

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._length: bytes | None = None
        self._in_head, self._head_bytes = True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer: what comes behind the body can name no key and no length any more
            return
        name = name.lower()
        if name == b"content-length":
            self._length = value
            return
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        url = self.url
        ours = not url.startswith(b"/v1") or url[3:4] not in (b"/", b"", b"?")
        upgrades = bool(self.parser.should_upgrade())
        self._stays = upgrades and (ours or self._get_upgrade() != b"websocket")
        if self._stays:
            return
        if ours:
            self._page()
            return
        raw_path, _, query = url.partition(b"?")
        old = self.parser.get_http_version() == "1.0"
        if self._head is None or self._head.headers != self.headers:
            self._head = Head(self.headers)
        client = Client(
            self,
            self.parser.get_method().decode(),
            raw_path,
            query,
            self._head,
            self._length,
            keep_alive=bool(self.parser.should_keep_alive()) and not upgrades,
            expects=self.expect_100_continue,
            old=old,
        )
        before = self.cycle
        self.cycle = client  # type: ignore[assignment]
        if upgrades:
            client.fed()
            self.relay = Relay(self.transport)
        if before is None or before.response_complete:
            self._pending = client
            if self.relay is not None:
                self._start_asgi_task(client, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((client, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        self._head_bytes = 0
        if type(cycle) is Client:
            cycle.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._stays:
            return
        cycle: Any = self.cycle
        if type(cycle) is not Client:
            super().on_message_complete()
            return
        cycle.fed()
        if self._pending is cycle:
            self._begin(cycle)

    # uvicorn

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is Client:
            self._begin(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def _begin(self, client: Client) -> None:
        self._pending = None
        self._active = client
        self._proxy.counters.in_flight += 1
        last: Any = self.cycle
        self._proxy.accept(client, self.relay if last is client else None)  # else it was sent before the one that upgrades

    def _page(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        if self._length is not None:
            self.headers.append((b"content-length", self._length))
        super().on_headers_complete()

    def _stay(self, rest: bytes) -> None:
        """The client would rather speak HTTP/2, say, as Java's does with every request: it is answered as if it had not asked
        (RFC 9110, 7.8). The parser, which takes the body for the other protocol already, begins anew.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(Refusal(405, "no_connect", "This is no proxy to connect through: the API's base URL ends in /v1."))
            return
        hops = (b"connection", b"upgrade", b"http2-settings")
        closes = any(name == b"connection" and b"close" in value.lower() for name, value in self.headers)
        headers = [pair for pair in self.headers if pair[0] not in hops] + [(b"connection", b"close")] * closes
        if self._length is not None:
            headers.append((b"content-length", self._length))
        first = method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"\r\n".join([first, *(name + b": " + value for name, value in headers), b"", rest]))

    def _resume(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _refuse(self, refusal: Refusal) -> None:
        """The connection cannot be read any further."""
        body = refusal.body
        if self._active is None or not self._active.started:
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(status_line(refusal.status) + head + body)
        self.transport.close()
