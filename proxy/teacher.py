"""Asking the teacher: the client's own request, under the client's key or the operator's."""

from collections.abc import AsyncIterator

from proxy.base import Base
from proxy.client import Client
from proxy.errors import Refusal, TimedOut, Unreachable, Unsendable, UpstreamError
from proxy.headers import secrets, to_teacher
from proxy.keys import Keys
from proxy.settings import ProxySettings
from proxy.upstream import Answer, Upstream

_PREFIX = len(b"/v1")


class Teacher:
    """The API at STILLROOM_TEACHER_URL."""

    def __init__(self, settings: ProxySettings) -> None:
        self._base = Base(settings.teacher_url)
        self._key = settings.teacher_key.get_secret_value() if settings.teacher_key else None
        self._keys = Keys()
        self._upstream = Upstream(
            connect_timeout=settings.connect_timeout, read_timeout=settings.read_timeout, url=settings.teacher_url
        )

    async def ask(self, client: Client, body: bytes | AsyncIterator[bytes]) -> Answer:
        """Forward the request with `body`: /v1/x?y goes to {teacher_url}/x?y. Raises UpstreamError."""
        target = client.raw_path[_PREFIX:] + (b"?" + client.query if client.query else b"")
        headers = to_teacher(client.headers, self._key)
        return await self._upstream.open(client.method, self._base, target, headers, body, length=client.header(b"content-length"))

    def judged(self, client: Client, status: int) -> list[bytes] | None:
        """The teacher has answered a completion for this client: 2xx accepts its key, 401 and 403 refuse it.

        Returns the keys of a refused request, which the answer may quote; else None.
        """
        if 200 <= status < 300:
            self._keys.accept(client.headers)
        elif status in (401, 403):
            self._keys.revoke(client.headers)
            return secrets(to_teacher(client.headers, self._key))
        return None

    def trusts(self, client: Client) -> bool:
        """Whether a student may answer this client: the operator's key is used, or the client's is known to be good."""
        return self._key is not None or self._keys.accepted(client.headers)

    def refusal(self, error: UpstreamError) -> Refusal:
        """What a client is told when the teacher gave no answer."""
        if isinstance(error, Unsendable):
            return Refusal(400, "bad_request", f"The request cannot be forwarded: {error}.")
        if isinstance(error, TimedOut):
            return Refusal(504, "teacher_timeout", f"No answer from the teacher: {error} (STILLROOM_READ_TIMEOUT).")
        if isinstance(error, Unreachable):
            return Refusal(502, "teacher_unreachable", f"No teacher: {error}. Check the network and STILLROOM_TEACHER_URL.")
        return Refusal(502, "teacher_lost", f"No answer from the teacher: {error}. The request can be sent again.")

    async def close(self) -> None:
        """Close every connection."""
        await self._upstream.close()
