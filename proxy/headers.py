"""Which headers go through. Names are lower-case bytes, order and duplicates are kept."""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

#: Meant for one connection only (RFC 9110, 7.6.1); so is whatever `connection` names.
HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip
OURS = b"x-stillroom-"


def to_teacher(headers: Headers, key: str | None) -> Headers:
    """A client's headers as the teacher gets them; with a `key` of the operator's in place of the client's.

    Host and the body's framing are the upstream client's to add; Expect has been answered by our own server.
    """
    dropped = HOP | {b"host", b"content-length", b"expect"}
    if key is not None:
        dropped |= {b"authorization"}
    kept = _without(headers, dropped)
    return kept if key is None else [*kept, (b"authorization", b"Bearer " + key.encode())]


def to_client(headers: Headers, added: Headers) -> Headers:
    """An upstream's headers as the client gets them, and the proxy's own behind them."""
    dropped = HOP
    if first(headers, b"transfer-encoding"):
        dropped |= {b"content-length"}  # it does not count beside transfer-encoding (RFC 9112, 6.3)
    return [*_without(headers, dropped), *added]


def first(headers: Headers, name: bytes) -> str | None:
    """The first value of a header, None if it is absent."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1").strip()
    return None


def streams(headers: Headers) -> bool:
    """Whether an answer is an event stream."""
    return (first(headers, b"content-type") or "").lower().startswith("text/event-stream")


def _without(headers: Headers, dropped: Iterable[bytes]) -> Headers:
    named = {name.strip() for key, value in headers if key == b"connection" for name in value.lower().split(b",")}
    return [(k, v) for k, v in headers if k not in dropped and k not in named and not k.startswith(OURS)]
