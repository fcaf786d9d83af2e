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
        self._head_bytes = 0
        self._in_head = False
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
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(Refusal(431, "headers_too_large", f"The request's headers are larger than {HEAD_BYTES:,} bytes."))
                return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.relay is not None:
                self.relay.from_client(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self.transport.is_closing():
                self._refuse(Refusal(400, "bad_http", "What came on this connection is no HTTP/1.1 request."))
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
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        url = self.url
        if not url.startswith(b"/v1") or url[3:4] not in (b"/", b"", b"?"):
            self._page()
            return
        raw_path, _, query = url.partition(b"?")
        upgrades = bool(self.parser.should_upgrade())
        old = self.parser.get_http_version() == "1.0"
        client = Client(
            self,
            self.parser.get_method().decode(),
            raw_path,
            query,
            self.headers,
            keep_alive=bool(self.parser.should_keep_alive()) and not upgrades,
            expects=self.expect_100_continue,
            old=old,
        )
        before = self.cycle
        self.cycle = client  # type: ignore[assignment]
        if upgrades and self._get_upgrade() == b"websocket":
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
        if type(cycle) is Client:
            cycle.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        cycle: Any = self.cycle
        if type(cycle) is not Client:
            super().on_message_complete()
            return
        cycle.fed()
        if self._pending is cycle:
            self._begin(cycle)

    # uvicorn

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is Client:
            self._begin(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def _begin(self, client: Client) -> None:
        self._pending = None
        self._active = client
        self._proxy.counters.in_flight += 1
        self._proxy.accept(client, self.relay)

    def _page(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

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
