"""Which headers go through. Names are lower-case bytes, order and duplicates are kept."""

from collections.abc import Set

Headers = list[tuple[bytes, bytes]]

#: Meant for one connection only (RFC 9110, 7.6.1); so is whatever `connection` names.
HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip
OURS = b"x-stillroom-"
#: Where a client's key is.
CREDENTIALS = (b"authorization", b"api-key", b"x-api-key")
_ACCOUNT = (b"cookie", b"openai-organization", b"openai-project")  #: says whose key it is
_NOT_TO_TEACHER = HOP | {b"host", b"content-length", b"expect"}
_NOT_WITH_KEY = _NOT_TO_TEACHER | {*CREDENTIALS, *_ACCOUNT}
_NOT_TO_CLIENT = HOP | {b"content-length"}
_USUAL = {b"keep-alive", b"close", b"Keep-Alive", b"Upgrade"}  # of a `connection`: names no header that is not dropped anyway
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


def secrets(headers: Headers) -> list[bytes]:
    """The values of the credentials among these headers, with and without their scheme, longest first."""
    values = [value for name, value in headers if name in CREDENTIALS]
    parts = {part for value in values for part in (value, value.split(b" ")[-1]) if len(part) >= _SECRET}
    return sorted(parts, key=len, reverse=True)


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
