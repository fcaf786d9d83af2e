"""One exchange as it happens: begun in the spool before anybody is asked, ended there before its last byte is sent."""

import re
import time
import zlib
from collections.abc import Sequence
from typing import Any

from proxy import encoding
from proxy.headers import Headers, first, streams
from proxy.spool import NotKept, Spool
from store import ids
from store.states import CaptureStatus, Server

_DONE = re.compile(rb"[\r\n]data:[ \t]*\[DONE\]")  # JSON has no bare line feed: no answer's text can look like this
_TAIL = 64  # bytes of what came before, in which [DONE] may have begun
_LOOK = 16_000_000  # decoded bytes of an encoded stream in which it is looked for


class Capture:
    """What is told of one exchange. Without a spool, or where the spool is full, nothing is kept and nothing fails."""

    def __init__(self, spool: Spool | None, max_answer: int) -> None:
        self.id = ids.new("cap")
        self.served_by = Server.TEACHER
        self.adapter_id: str | None = None
        self.fallback: str | None = None
        self.secrets: Sequence[bytes] | None = None  #: the request's keys, longest first, where the answer may quote one
        self._spool = spool
        self._open = False  # begun and not ended
        self._max_answer = max_answer
        self._started = time.perf_counter()
        self._first_byte: float | None = None
        self._http: dict[str, Any] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b"\n"
        self._decoder: encoding.Decoder | None = None

    def begin(self, endpoint: str, body: bytes, *, task: str | None, retry_count: int) -> None:
        """The request has been accepted. `task` is its explicit name."""
        meta = {"kind": "begin", "id": self.id, "at": time.time(), "endpoint": endpoint, "task": task, "retry_count": retry_count}
        if self._spool is None:
            return
        try:
            self._spool.append(meta, body)
            self._open = True
        except NotKept as why:
            self._spool.not_kept(why)

    def answered(self, status: int, headers: Headers) -> None:
        """The answer's head, as it goes to the client."""
        encoded = first(headers, b"content-encoding")
        self._http = {"http_status": status, "stream": streams(headers), "encoding": encoded}
        self._decoder = encoding.Decoder(_LOOK) if encoding.known(encoded) else None

    def add(self, chunk: bytes) -> bool:
        """A part of the answer's body. True if it holds a stream's last event: `end` before sending it."""
        if self._first_byte is None:
            self._first_byte = time.perf_counter()
        self._size += len(chunk)
        if not self._open or self._size > self._max_answer:
            return False
        self._parts.append(chunk)
        return bool(self._http.get("stream")) and self._ends(chunk)

    def end(self, status: CaptureStatus, error: str | None = None) -> None:
        """How it ended; only the first call counts. When it returns the exchange survives kill -9."""
        if not self._open or self._spool is None:
            return
        self._open = False
        if self._size > self._max_answer:
            status, error = CaptureStatus.INCOMPLETE, f"the answer is larger than {self._max_answer:,} bytes and was not kept"
            self._parts = []
        body = b"".join(self._parts)
        if self.secrets is not None:
            body = self._masked(body, self.secrets)
        meta = {
            "kind": "end", "id": self.id, "status": status, "error": error, "served_by": self.served_by,
            "adapter_id": self.adapter_id, "fallback": self.fallback, "first_byte_ms": self._milliseconds(self._first_byte),
            "duration_ms": self._milliseconds(time.perf_counter()), **self._http,
        }  # fmt: skip
        try:
            self._spool.append(meta, body, reserve=True)
        except NotKept as why:
            self._spool.not_kept(why)
            self._spool.abandon(self.id)
        self._parts = []

    def _ends(self, chunk: bytes) -> bool:
        if self._decoder is not None:
            try:
                chunk = self._decoder.feed(chunk)
            except zlib.error:  # what it really is the client will see
                chunk = b""
        window = self._tail + chunk
        self._tail = window[-_TAIL:]
        return _DONE.search(window) is not None

    def _masked(self, body: bytes, secrets: Sequence[bytes]) -> bytes:
        """The body without the request's keys; nothing at all if it cannot be read."""
        plain, unread = encoding.decode(body, self._http["encoding"])
        self._http["encoding"] = None
        for secret in secrets:
            plain = plain.replace(secret, b"***")
        return b"" if unread else plain

    def _milliseconds(self, at: float | None) -> float | None:
        return None if at is None else round((at - self._started) * 1000, 3)
