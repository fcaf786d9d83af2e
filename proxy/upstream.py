"""The HTTP client to the teacher and to the students: raw bytes both ways, nothing decoded, followed or retried in secret."""

import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Protocol

import httpx

from proxy.base import Base
from proxy.errors import Unsendable
from proxy.headers import Headers
from proxy.http1 import Http1Answer, Pool
from proxy.tunnel import Tunnel


class Answer(Protocol):
    """What an upstream says: the head at once, the body as it comes."""

    status: int
    headers: Headers  #: names in lower case
    #: Where there is one, a part of the body is offered to it first, as it comes, while whoever walks the body waits; what it takes
    #: (True) is not walked. A loop without the loop: it costs a third.
    sink: Callable[[bytes], bool] | None

    def ready(self) -> bytes | None:
        """The whole body, if all of it is here already; else None. To be asked for once."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive. Raises UpstreamError if they end too early. To be walked once."""

    async def close(self) -> None:
        """Hand the connection back, or cut it if there is more to come."""


class Upstream:
    """One pool of connections, without a limit on how many are in use."""

    def __init__(self, *, connect_timeout: float, read_timeout: float, url: str | None = None) -> None:
        """`url` is where the pool will mostly connect to: decides whether the environment's HTTP proxy is used."""
        times = {"connect_timeout": connect_timeout, "read_timeout": read_timeout}
        proxy = _environment_proxy(url)
        self._tunnel = None if proxy is None else Tunnel(proxy, certificates=_certificates(), **times)
        self._pool = Pool(certificates=_certificates, **times)

    async def open(
        self,
        method: str,
        base: Base,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes],
        length: str | None = None,
        *,
        upgrades: bool = False,
        fresh: bool = False,
    ) -> Answer:
        """Ask, and return when the answer's head is here. Raises UpstreamError.

        `upgrades`: to WebSocket; `fresh`: on a new connection.

        `target` is path and query below `base`, sent as it is. A streamed body is framed by `length`, or chunked without.
        A connection that was kept open and turns out to have died before any byte of an answer is replaced once: upstreams
        close idle connections at any time, and the client has done nothing wrong. A body that streams cannot be sent again.
        """
        target = base.path + target or b"/"
        headers = [(b"host", base.host), *headers, *_framing(method, body, length)]
        if self._tunnel is not None:
            if upgrades:
                raise Unsendable("a WebSocket cannot be opened through the HTTP proxy that the environment names")
            return await self._tunnel.ask(method, base, target, headers, body)
        if upgrades:
            headers += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        head, bodiless = _head(method, target, headers), method == "HEAD"
        return await self._pool.ask(
            base.origin, base.name, head, body, chunked=length is None, bodiless=bodiless, upgrades=upgrades, fresh=fresh
        )

    def offer(
        self, base: Base, target: bytes, lines: bytes, body: bytes, then: Callable[[Http1Answer], None]
    ) -> Http1Answer | None:
        """POST without a task, if a connection is kept; else nothing is done, and None returned. See `Pool.offer`.

        `lines` are the headers, as `header_lines` writes them.
        """
        if self._tunnel is not None:
            return None
        head = b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n" % (base.path + target, lines, len(body))
        return self._pool.offer(base.origin, base.name, head, body, then)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()
        if self._tunnel is not None:
            await self._tunnel.close()


def header_lines(base: Base, headers: Headers) -> bytes:
    """Headers as `Upstream.offer` sends them, the host's first. Raises Unsendable."""
    return _head("", b"", [(b"host", base.host), *headers]).split(b"\r\n", 1)[1][:-2]


def _head(method: str, target: bytes, headers: Headers) -> bytes:
    """The request line and the headers. Raises Unsendable where one of them would begin another line."""
    head = b"\r\n".join([method.encode() + b" " + target + b" HTTP/1.1", *[name + b": " + value for name, value in headers]])
    if head.count(b"\n") != len(headers) or head.count(b"\r") != len(headers) or b"\0" in head:
        raise Unsendable("the request has a header or a path that HTTP/1.1 does not allow")
    return head + b"\r\n\r\n"


def _framing(method: str, body: bytes | AsyncIterator[bytes], length: str | None) -> Headers:
    if not isinstance(body, bytes):
        return [(b"content-length", length.encode())] if length is not None else [(b"transfer-encoding", b"chunked")]
    said = body or length is not None or method in {"POST", "PUT", "PATCH"}
    return [(b"content-length", b"%d" % len(body))] if said else []


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # a tenth of a second


def _environment_proxy(url: str | None) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say about a URL, as other clients read them."""
    if url is None or urllib.request.proxy_bypass(httpx.URL(url).host):
        return None
    found = urllib.request.getproxies()
    proxy = found.get(httpx.URL(url).scheme) or found.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"
