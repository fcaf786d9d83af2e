"""Which clients' keys a teacher has accepted lately. In memory only, and only as SHA-256."""

import time
from collections.abc import Callable

from proxy.head import Head

SECONDS = 3600.0
_AGAIN = 60.0  # seconds in which a key that was accepted is not noted again
_PRUNE_AT = 10_000


class Trust:
    """Without a key of its own the proxy cannot judge a client's: the student answers only for those the teacher took."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accepted: dict[bytes, float] = {}

    def accept(self, head: Head) -> None:
        """The teacher has answered a request with these headers with 2xx."""
        now, key = self._clock(), head.credentials
        if now - self._accepted.get(key, float("-inf")) < _AGAIN:
            return
        if len(self._accepted) > _PRUNE_AT:
            self._accepted = {key: at for key, at in self._accepted.items() if now - at < SECONDS}
        self._accepted[key] = now

    def revoke(self, head: Head) -> None:
        """The teacher has refused the key in these headers."""
        self._accepted.pop(head.credentials, None)

    def accepted(self, head: Head) -> bool:
        """Whether the teacher has accepted the key in these headers within the last hour, and not refused it since."""
        at = self._accepted.get(head.credentials)
        return at is not None and self._clock() - at < SECONDS
