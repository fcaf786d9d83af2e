"""Identifiers: a prefix, then 26 hexadecimal digits that sort by time of making."""

import os
import random
import time

_random = random.Random(os.urandom(32))  # nobody else seeds it; a million ids of one millisecond collide once in two million times
os.register_at_fork(after_in_child=lambda: _random.seed(os.urandom(32)))


def new(prefix: str) -> str:
    """`new("cap")` gives `cap_` + 11 digits of milliseconds since 1970 + 15 random digits. Not a secret."""
    return f"{prefix}_{time.time_ns() // 1_000_000:011x}{_random.getrandbits(60):015x}"
