"""What the drainer says of itself, for the workers' /readyz: a small file in the spool, written anew when it changes."""

from pathlib import Path
from typing import Any

import orjson

_NAME = "drainer.json"
UNKNOWN: dict[str, Any] = {"database": "not tried yet", "rejected": 0}


def write(root: Path, state: dict[str, Any]) -> None:
    """Raises OSError."""
    hidden = root / f".{_NAME}"
    hidden.write_bytes(orjson.dumps(state))
    hidden.rename(root / _NAME)


def read(root: Path) -> dict[str, Any]:
    """What was written last; UNKNOWN if nothing was."""
    try:
        return dict(orjson.loads((root / _NAME).read_bytes()))
    except (OSError, ValueError):
        return UNKNOWN
