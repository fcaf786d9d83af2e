"""Undoing an answer's content-encoding: gzip and deflate, nothing else, and never more than a limit."""

import zlib

MAX_DECODED = 100_000_000  # bytes: a compressed answer that grows beyond is kept as far as this
_GZIP = b"\x1f\x8b"


def known(encoding: str | None) -> bool:
    """Whether a content-encoding, in any case, is one that can be undone."""
    return (encoding or "").lower() in {"gzip", "x-gzip", "deflate"}


def decode(body: bytes, encoding: str | None) -> tuple[bytes, str | None]:
    """A body with its content-encoding undone; and, where that cannot be done, the body as it came and why."""
    if not body or (encoding or "").lower() in {"", "identity"}:
        return body, None
    if not known(encoding):
        return body, f"the answer is {encoding}-encoded and kept as it came"
    if "gzip" in (encoding or "").lower() and body[:2] != _GZIP:  # else plain text would be read as bare deflate
        return body, f"the answer cannot be read as {encoding}: it does not begin as gzip does"
    try:
        return Decoder(MAX_DECODED).feed(body), None
    except zlib.error as error:
        return body, f"the answer cannot be read as {encoding}: {error}"


class Decoder:
    """Of one body, in parts of any size: gzip of one or several members, zlib, or bare deflate, as its first bytes say."""

    def __init__(self, limit: int) -> None:
        """At most `limit` bytes come out in total."""
        self._left = limit
        self._inflate: zlib._Decompress | None = None
        self._waiting = b""  # a member's first byte, until the second is there
        self._members = 0

    def feed(self, data: bytes) -> bytes:
        """What can be read now that `data` has come too. Raises zlib.error."""
        data, out = self._waiting + data, []
        while data and self._left:
            if self._inflate is None:
                if len(data) < 2 or (self._members and data[:2] != _GZIP):  # behind the last member: nothing of interest
                    break
                self._inflate = zlib.decompressobj(_window(data))
                self._members += 1
            out.append(self._inflate.decompress(data, self._left))
            self._left -= len(out[-1])
            data = b""
            if self._inflate.eof:
                data, self._inflate = self._inflate.unused_data, None
        self._waiting = data[:2]
        return b"".join(out)


def _window(head: bytes) -> int:
    """zlib's `wbits` for data that begins so (RFC 1950, 2.2; RFC 1952, 2.3.1)."""
    framed = head[:2] == _GZIP or (head[0] & 15 == 8 and int.from_bytes(head[:2], "big") % 31 == 0)
    return zlib.MAX_WBITS | 32 if framed else -zlib.MAX_WBITS
