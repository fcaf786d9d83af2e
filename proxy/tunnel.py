"""Asking an upstream through an HTTP proxy that the environment names: httpx's transport, which knows how to."""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from proxy.base import Base
from proxy.errors import Broken, TimedOut, Unreachable, Unsendable
from proxy.headers import Headers

KEPT_CONNECTIONS = 100  # idle ones; httpcore walks the whole list for each request
KEPT_SECONDS = 55.0


class Tunnel:
    """As `proxy.http1.Pool`, at several times its cost."""

    def __init__(self, proxy: str, *, connect_timeout: float, read_timeout: float, certificates: ssl.SSLContext) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS, keepalive_expiry=KEPT_SECONDS)
        self._timeouts = {"connect": connect_timeout, "read": read_timeout, "write": read_timeout, "pool": None}
        # Below httpx.AsyncClient: no cookie jar, no redirects, no decoding, no logging, a third of the cost.
        self._transport = httpx.AsyncHTTPTransport(verify=certificates, limits=limits, proxy=proxy)

    async def ask(
        self, method: str, base: Base, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> "TunnelAnswer":
        """Ask, and return when the answer's head is here. `target` begins with the base's path; what a URL does not allow in
        it is percent-encoded. `headers` are all that are to be sent. Raises UpstreamError.
        """
        for last in (False, True):
            dial = _Dial()
            try:
                with _typed(base):
                    request = httpx.Request(
                        method,
                        base.url.copy_with(raw_path=target),
                        headers=headers,
                        stream=httpx.ByteStream(body) if isinstance(body, bytes) else _Body(body),
                        extensions={"timeout": self._timeouts, "trace": dial.trace},
                    )
                    return TunnelAnswer(await self._transport.handle_async_request(request), base)
            except Broken as error:
                if last or dial.fresh or not isinstance(body, bytes) or not _unanswered(error):
                    raise
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


class TunnelAnswer:
    """One exchange's answer."""

    sink: Callable[[bytes], bool] | None = None  # is not asked: every part is walked

    def __init__(self, response: httpx.Response, base: Base) -> None:
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        self._base = base
        self._response = response

    def ready(self) -> bytes | None:
        return None

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
    except (httpx.LocalProtocolError, httpx.InvalidURL, UnicodeDecodeError) as error:
        raise Unsendable("the request has a header or a path that HTTP/1.1 does not allow") from error
    except httpx.TransportError as error:  # its text may quote headers, cookies among them
        raise Broken(f"the connection to {base} was lost ({type(error).__name__})") from error


def _unanswered(error: Broken) -> bool:
    """The connection ended without a byte of an answer."""
    cause = error.__cause__
    return not isinstance(cause, httpx.RemoteProtocolError) or "without sending a response" in str(cause)
