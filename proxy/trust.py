"""Which clients' keys the teacher has accepted lately. In memory only, and only as SHA-256."""

import hashlib
import time
from collections.abc import Callable

from proxy.headers import CREDENTIALS, Headers

SECONDS = 3600.0
_PRUNE_AT = 10_000


class Keys:
    """Without a key of its own the proxy cannot judge a client's: the student answers only for those the teacher took."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accepted: dict[bytes, float] = {}

    def accept(self, headers: Headers) -> None:
        """The teacher has answered a request with these headers with 2xx."""
        if len(self._accepted) > _PRUNE_AT:
            self._accepted = {key: at for key, at in self._accepted.items() if self._fresh(at)}
        self._accepted[_digest(headers)] = self._clock()

    def revoke(self, headers: Headers) -> None:
        """The teacher has refused the key in these headers."""
        self._accepted.pop(_digest(headers), None)

    def accepted(self, headers: Headers) -> bool:
        """Whether the teacher has accepted the key in these headers within the last hour, and not refused it since."""
        at = self._accepted.get(_digest(headers))
        return at is not None and self._fresh(at)

    def _fresh(self, at: float) -> bool:
        return self._clock() - at < SECONDS


def _digest(headers: Headers) -> bytes:
    digest = hashlib.sha256()
    for name, value in headers:
        if name in CREDENTIALS:
            digest.update(name + b":" + value + b"\n")
    return digest.digest()
