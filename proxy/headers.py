"""Which headers go through. Names are lower-case bytes, order and duplicates are kept."""

import re
from collections.abc import Set
from urllib.parse import unquote_to_bytes

Headers = list[tuple[bytes, bytes]]

#: Meant for one connection only (RFC 9110, 7.6.1); so is whatever `connection` names.
HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip
OURS = b"x-stillroom-"
#: Where a client's key is.
CREDENTIALS = (b"authorization", b"api-key", b"x-api-key")
#: Where a browser puts the key of a WebSocket, as "realtime, openai-insecure-api-key.KEY": it can set no other header.
PROTOCOLS = b"sec-websocket-protocol"
IN_PROTOCOLS = b"openai-insecure-api-key."
_ACCOUNT = (b"cookie", b"openai-organization", b"openai-project")  #: says whose key it is
_NOT_TO_TEACHER = HOP | {b"host", b"content-length", b"expect"}
_NOT_WITH_KEY = _NOT_TO_TEACHER | {*CREDENTIALS, *_ACCOUNT}
_NOT_TO_CLIENT = HOP | {b"content-length"}
_USUAL = {b"keep-alive", b"close", b"Keep-Alive", b"Upgrade"}  # of a `connection`: names no header that is not dropped anyway
_KEYED = {*CREDENTIALS, b"cookie", b"x-goog-api-key"}  # go to a teacher as they come, and may have a key in them
_BETWEEN = re.compile(rb"[\s,;]+")
_SECRET = 8  # bytes: what is shorter is a placeholder, and found in ordinary words


def to_teacher(headers: Headers, key: str | None) -> Headers:
    """A client's headers as the teacher gets them; with a `key` of the operator's in place of the client's credentials.

    Host and the body's framing are the upstream client's to add; Expect has been answered by our own server.
    """
    if key is None:
        return _without(headers, _NOT_TO_TEACHER)
    return [*_without(headers, _NOT_WITH_KEY), (b"authorization", b"Bearer " + key.encode())]


def to_client(headers: Headers, added: Headers) -> Headers:
    """An upstream's headers as the client gets them, and the proxy's own behind them."""
    for name, _ in headers:
        if name == b"transfer-encoding":  # the length does not count beside it (RFC 9112, 6.3)
            return _without(headers, _NOT_TO_CLIENT) + added
    return _without(headers, HOP) + added


def secrets(headers: Headers, query: bytes = b"") -> list[bytes]:
    """What may be a key in a request, whole and in its parts, longest first: an answer that says no may quote any of them."""
    parts = set()
    for name, value in headers:
        if name in _KEYED:
            parts |= {value, *(part for word in _BETWEEN.split(value) for part in (word, word.partition(b"=")[2]))}
        elif name == PROTOCOLS:
            parts |= {word.removeprefix(IN_PROTOCOLS) for word in _BETWEEN.split(value) if word.startswith(IN_PROTOCOLS)}
    for pair in query.split(b"&"):
        value = pair.partition(b"=")[2]
        parts |= {value, unquote_to_bytes(value)}
    return sorted((part for part in parts if len(part) >= _SECRET), key=len, reverse=True)


def first(headers: Headers, name: bytes) -> str | None:
    """The first value of a header, None if it is absent."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1").strip()
    return None


def streams(headers: Headers) -> bool:
    """Whether an answer is an event stream."""
    return (first(headers, b"content-type") or "").lower().startswith("text/event-stream")


def _without(headers: Headers, dropped: Set[bytes]) -> Headers:
    for name, value in headers:
        if name == b"connection" and value not in _USUAL:
            dropped = dropped | {each.strip() for each in value.lower().split(b",")}
    return [header for header in headers if header[0] not in dropped and not header[0].startswith(OURS)]
