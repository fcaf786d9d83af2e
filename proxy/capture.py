"""One exchange as it happens: begun in the spool before anybody is asked, ended there before its last byte is sent."""

import re
import time
import zlib
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from proxy import encoding
from proxy.headers import Headers, first, streams
from proxy.spool import NotKept, Spool, Then, Waiting, nobody
from store import ids
from store.states import CaptureStatus, Server

# The last event of a stream. JSON has no bare line feed: no answer's text can look like these.
_LAST = re.compile(rb"[\r\n]data:[ \t]*\[DONE\]|[\r\n]event:[ \t]*response\.(?:completed|failed|incomplete)[ \t]*[\r\n]")
_BLANK = re.compile(rb"\r?\n\r?\n|\r\r")  # ends an event
_TAIL = 64  # bytes of what came before, in which the last event may have begun
_LOOK = 16_000_000  # decoded bytes of an encoded stream in which it is looked for


class Next(Enum):
    """What is to be done with a part of an answer."""

    SEND = "send"  #: it may go to the client
    HOLD = "hold"  #: a stream's last event has begun in it, and is not whole
    END = "end"  #: that event is whole: `end` before anything held is sent


class Capture:
    """What is told of one exchange. Without a spool, or where the spool is full, nothing is kept and nothing fails."""

    def __init__(
        self, spool: Spool | None, max_answer: int, count: Callable[["Capture"], None] | None = None, *, strict: bool = False
    ) -> None:
        """`count` is called once, when it ends. `strict`: what is not kept must not be acknowledged: `then` of `begin` and `end` is
        told so.
        """
        self.id = ids.new("cap")
        self.served_by = Server.TEACHER
        self.adapter_id: str | None = None
        self.teacher: str | None = None
        self.fallback: str | None = None
        self.secrets: Sequence[bytes] | None = None  #: the request's keys, longest first, where the answer may quote one
        self.status = 0  #: of the answer, as HTTP says it
        self.first_byte: float | None = None  #: seconds after the beginning
        self.seconds: float | None = None  #: from the beginning to the end
        self._count = count
        self._spool = spool
        self._strict = strict
        self._open = spool is not None  # begun, or about to be, and not ended
        self._max_answer = max_answer
        self._started = time.perf_counter()
        self._encoding: str | None = None
        self._stream: bool | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._text = b"\n"  # decoded: the end of what came, or all since the last event began
        self._last = False  # it has begun
        self._decoder: encoding.Decoder | None = None

    def begin(self, endpoint: str, body: bytes, then: Then, **meta: Any) -> None:
        """The request has been accepted; `meta` is what else is known of it."""
        if self._spool is None:
            then(None)
            return
        record = {"kind": "begin", "id": self.id, "at": time.time(), "endpoint": endpoint, **meta}
        self._spool.append(record, body, lambda error: self._has_begun(error, then))

    def answered(self, status: int, headers: Headers) -> None:
        """The answer's head, as it goes to the client."""
        self.status = status
        self._stream = streams(headers)
        self._encoding = first(headers, b"content-encoding")
        if self._encoding is not None and encoding.known(self._encoding):
            self._decoder = encoding.Decoder(_LOOK)

    def add(self, chunk: bytes) -> Next:
        """A part of the answer's body."""
        if self.first_byte is None:
            self.first_byte = time.perf_counter() - self._started
        self._size += len(chunk)
        if not self._open or self._size > self._max_answer:
            return Next.SEND
        self._parts.append(chunk)
        return self._look(chunk) if self._stream else Next.SEND

    def end(self, status: CaptureStatus, error: str | None = None, then: Then = nobody) -> None:
        """How it ended; only the first call counts. When `then` is called the exchange is durable, or is not kept."""
        if self.seconds is None:
            self.seconds = time.perf_counter() - self._started
            if self._count is not None:
                self._count(self)
        if not self._open or self._spool is None:
            then(None)
            return
        self._open = False
        if self._size > self._max_answer:
            status, error = CaptureStatus.INCOMPLETE, f"the answer is larger than {self._max_answer:,} bytes and was not kept"
            self._parts = []
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        if self.secrets is not None:
            body = self._masked(body, self.secrets)
        meta = {
            "kind": "end", "id": self.id, "status": status, "error": error, "served_by": self.served_by,
            "adapter_id": self.adapter_id, "teacher": self.teacher, "fallback": self.fallback,
            "first_byte_ms": None if self.first_byte is None else round(self.first_byte * 1000, 3),
            "duration_ms": round(self.seconds * 1000, 3),
        }  # fmt: skip
        if self.status:
            meta |= {"http_status": self.status, "stream": self._stream, "encoding": self._encoding}
        self._spool.append(meta, body, lambda error: self._has_ended(error, then), reserve=True)

    async def ended(self, status: CaptureStatus) -> None:
        """As `end`, and wait until it is durable. Raises NotKept if it is strict."""
        if self._open:
            waiting = Waiting()
            self.end(status, then=waiting.then)
            await waiting

    def _has_begun(self, error: NotKept | None, then: Then) -> None:
        if error is not None and self._spool is not None:
            self._open = False
            if not self._strict:
                self._spool.not_kept(error)
        then(error if self._strict else None)

    def _has_ended(self, error: NotKept | None, then: Then) -> None:
        if error is not None and self._spool is not None:
            if not self._strict:  # else it is not acknowledged either
                self._spool.not_kept(error)
            self._spool.abandon(self.id)
        then(error if self._strict else None)

    def _look(self, chunk: bytes) -> Next:
        if self._decoder is not None:
            try:
                chunk = self._decoder.feed(chunk)
            except zlib.error:  # what it really is the client will see
                chunk = b""
        text = self._text + chunk
        if not self._last:
            # one of the two is in every text that the expression fits, and looking for them costs a tenth
            found = _LAST.search(text) if b"[DONE]" in text or b"event:" in text else None
            if found is None:
                self._text = text[-_TAIL:]
                return Next.SEND
            self._last, text = True, text[found.start() + 1 :]
        self._text = text
        return Next.END if _BLANK.search(text) else Next.HOLD

    def _masked(self, body: bytes, secrets: Sequence[bytes]) -> bytes:
        """The body without the request's keys; nothing at all if it cannot be read."""
        plain, unread = encoding.decode(body, self._encoding)
        self._encoding = None
        for secret in secrets:
            plain = plain.replace(secret, b"***")
        return b"" if unread else plain
