"""The HTTP client to the teacher and to the students: raw bytes both ways, nothing decoded, followed or retried in secret.

The seam under which a faster client can be put: `Upstream.open` gives an `Answer`; errors are

    UpstreamError           no answer, or not all of it; the text is fit for a client to read
    ├── Unreachable         no connection could be made
    ├── TimedOut            connected, then silent for too long
    ├── Broken              the connection was lost, or what came is no HTTP
    └── Unsendable          the request cannot be written as HTTP/1.1
"""

import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import httpx

from proxy.headers import Headers

KEPT_CONNECTIONS = 100  # idle ones; httpcore walks the whole list for each request
KEPT_SECONDS = 55.0


class UpstreamError(Exception):
    """The upstream gave no answer, or not all of it."""


class Unreachable(UpstreamError):
    """No connection could be made."""


class TimedOut(UpstreamError):
    """Connected, then silent for too long."""


class Broken(UpstreamError):
    """The connection was lost, or what came is no HTTP."""


class Unsendable(UpstreamError):
    """The request cannot be written as HTTP/1.1."""


class Answer(Protocol):
    """What an upstream says: the head at once, the body as it comes."""

    status: int
    headers: Headers  #: names in lower case

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive. Raises UpstreamError if they end too early. To be walked once."""

    async def close(self) -> None:
        """Hand the connection back, or cut it if there is more to come."""


class Base:
    """Where an API begins, such as https://api.openai.com/v1."""

    def __init__(self, url: str) -> None:
        self.url = httpx.URL(url.rstrip("/"))
        self.path = self.url.raw_path.rstrip(b"/")
        self.host = self.url.netloc

    def __str__(self) -> str:
        return self.host.decode()  # what a message may show: no path, no user, no password


class Upstream:
    """One pool of connections, without a limit on how many are in use."""

    def __init__(self, *, connect_timeout: float, read_timeout: float, url: str | None = None) -> None:
        """`url` is where the pool will mostly connect to: decides whether the environment's HTTP proxy is used."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS, keepalive_expiry=KEPT_SECONDS)
        self._timeouts = {"connect": connect_timeout, "read": read_timeout, "write": read_timeout, "pool": None}
        # Below httpx.AsyncClient: no cookie jar, no redirects, no decoding, no logging, a third of the cost.
        self._transport = httpx.AsyncHTTPTransport(verify=_certificates(), limits=limits, proxy=_environment_proxy(url))

    async def open(
        self,
        method: str,
        base: Base,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes],
        length: str | None = None,
    ) -> Answer:
        """Ask, and return when the answer's head is here. Raises UpstreamError.

        `target` is path and query below `base`, sent as it is. A streamed body is framed by `length`, or chunked without.
        A connection that was kept open and turns out to have died before any byte of an answer is replaced once: upstreams
        close idle connections at any time, and the client has done nothing wrong. A body that streams cannot be sent again.
        """
        framing = _framing(method, body, length)
        for last in (False, True):
            dial = _Dial()
            request = httpx.Request(
                method,
                base.url,
                headers=[(b"host", base.host), *headers, *framing],
                stream=httpx.ByteStream(body) if isinstance(body, bytes) else _Body(body),
                extensions={"timeout": self._timeouts, "target": base.path + target or b"/", "trace": dial.trace},
            )
            try:
                with _typed(base):
                    return _HttpxAnswer(await self._transport.handle_async_request(request), base)
            except Broken as error:
                if last or dial.fresh or not isinstance(body, bytes) or not _unanswered(error):
                    raise
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


class _HttpxAnswer:
    def __init__(self, response: httpx.Response, base: Base) -> None:
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        self._base = base
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, httpx.AsyncByteStream)
        with _typed(self._base):
            async for chunk in self._response.stream:
                yield chunk

    async def close(self) -> None:
        await self._response.aclose()


class _Body(httpx.AsyncByteStream):
    """A request body that is sent as it comes in."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield chunk


class _Dial:
    """Whether a request made a new connection."""

    fresh = False

    async def trace(self, event: str, _info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.fresh = True


@contextmanager
def _typed(base: Base) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        raise Unreachable(f"cannot connect to {base}: {error or type(error).__name__}") from error
    except httpx.TimeoutException as error:
        raise TimedOut(f"{base} was silent for too long") from error
    except httpx.LocalProtocolError as error:
        raise Unsendable("the request has a header or a path that HTTP/1.1 does not allow") from error
    except httpx.TransportError as error:  # its text may quote headers, cookies among them
        raise Broken(f"the connection to {base} was lost ({type(error).__name__})") from error


def _unanswered(error: Broken) -> bool:
    """The connection ended without a byte of an answer."""
    cause = error.__cause__
    return not isinstance(cause, httpx.RemoteProtocolError) or "without sending a response" in str(cause)


def _framing(method: str, body: bytes | AsyncIterator[bytes], length: str | None) -> Headers:
    if not isinstance(body, bytes):
        return [(b"content-length", length.encode())] if length is not None else [(b"transfer-encoding", b"chunked")]
    return [(b"content-length", b"%d" % len(body))] if body or method in {"POST", "PUT", "PATCH"} else []


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
