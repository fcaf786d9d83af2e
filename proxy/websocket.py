"""A connection that has been upgraded (realtime speaks WebSocket): bytes both ways, whatever they are, until one side ends it."""

import asyncio
from typing import Any

_EARLY = 256 * 1024  # bytes that a client may send before the upstream has agreed


class Relay:
    """Between a client's connection and an upstream's. Each tells it what happens; it holds no more than their buffers."""

    def __init__(self, client: Any) -> None:
        """`client` is the client's transport."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()  #: both are closed
        self._client = client
        self._upstream: Any = None
        self._early: list[bytes] = []

    def open(self, upstream: Any, data: bytes) -> None:
        """The upstream has agreed, and `data` are its first bytes."""
        self._upstream = upstream
        if data:
            self._client.write(data)
        early, self._early = self._early, []
        if early:
            upstream.write(b"".join(early))
        self._client.resume_reading()
        if self._client.is_closing():
            upstream.close()

    def from_client(self, data: bytes) -> None:
        if self._upstream is not None:
            self._upstream.write(data)
            return
        self._early.append(data)
        if sum(map(len, self._early)) > _EARLY:
            self._client.pause_reading()

    def from_upstream(self, data: bytes) -> None:
        self._client.write(data)

    def client_full(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def client_ready(self) -> None:
        if self._upstream is not None and not self._upstream.is_closing():
            self._upstream.resume_reading()

    def upstream_full(self) -> None:
        self._client.pause_reading()

    def upstream_ready(self) -> None:
        if not self._client.is_closing():
            self._client.resume_reading()

    def client_lost(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        self._end()

    def upstream_lost(self) -> None:
        self._client.close()
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)
