"""Progress on the terminal, results in a file."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "durability.json"


def progress(what: str, done: float, of: float, more: str = "") -> None:
    print(f"{time.strftime('%H:%M:%S')} {what} {done:g}/{of:g} {more}", file=sys.stderr, flush=True)


def record(name: str, result: dict[str, Any], command: str) -> None:
    """Put one scenario's result beside the others'."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    before[name] = {"command": command, "cores": len(os.sched_getaffinity(0)), **result}
    RESULTS.write_text(json.dumps(dict(sorted(before.items())), indent=2) + "\n")
