"""A request's headers, and what has been made of them. Clients repeat theirs on a connection: so nothing is made of them twice."""

import hashlib
from typing import Any

from proxy.headers import CREDENTIALS, Headers


class Head:
    """Headers of one or of many requests, without content-length. Whoever derives something from them keeps it in `derived`."""

    __slots__ = ("_credentials", "derived", "headers", "named")

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.named = dict(reversed(headers))  #: the first value of each
        self.derived: dict[Any, Any] = {}  #: by who has made it, and of what
        self._credentials: bytes | None = None

    @property
    def credentials(self) -> bytes:
        """SHA-256 of all the keys in it."""
        if self._credentials is None:
            digest = hashlib.sha256()
            for name, value in self.headers:
                if name in CREDENTIALS:
                    digest.update(name + b":" + value + b"\n")
            self._credentials = digest.digest()
        return self._credentials
