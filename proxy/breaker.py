"""A breaker: stops asking a student that keeps failing, so that requests do not wait for it one after the other."""

import time
from collections.abc import Callable

FAILURES = 5  # in a row open it
SECONDS = 10.0  # how long it stays open before one request may try again


class Breaker:
    """Closed: all may ask. Open: none. Half open, after SECONDS: one at a time, until one succeeds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._opened: float | None = None
        self._probing = False

    @property
    def state(self) -> str:
        """closed, open or half-open."""
        if self._opened is None:
            return "closed"
        return "half-open" if self._clock() - self._opened >= SECONDS else "open"

    def admit(self) -> bool:
        """Whether to ask. Who is admitted tells how it went: `succeed`, `fail`, or `release` if it cannot be said (yet)."""
        if self.state == "half-open" and not self._probing:
            self._probing = True
            return True
        return self.state == "closed"

    def succeed(self) -> None:
        self._failures, self._opened, self._probing = 0, None, False

    def fail(self) -> None:
        self._failures, self._probing = self._failures + 1, False
        if self._opened is not None or self._failures >= FAILURES:
            self._opened = self._clock()

    def release(self) -> None:
        self._probing = False
