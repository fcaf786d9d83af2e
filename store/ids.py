"""Identifiers: a prefix, then 26 hexadecimal digits that sort by time of making."""

import secrets
import time


def new(prefix: str) -> str:
    """`new("cap")` gives `cap_` + 11 digits of milliseconds since 1970 + 15 random digits."""
    return f"{prefix}_{time.time_ns() // 1_000_000:011x}{secrets.token_hex(8)[:15]}"
