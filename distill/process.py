"""A process of ours that computes: started, listened to line by line, stopped when this one must stop."""

import json
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store import children

CHECK_SECONDS = 0.5  # between two looks at whether to stop, however long the process is silent
GRACE_SECONDS = 12.0  # to end a step and write a checkpoint
SIGTERMED = 143  # the exit code of a process that was told to stop, and has put its work in safety


class ProcessFailed(Exception):
    """It ended without a result; the message has its last words."""


class ProcessKilled(Exception):
    """It was killed from outside."""


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    result: dict[str, Any]
    peak_memory: int | None  #: bytes that were resident at once; None where the system does not say


def follow(
    command: Sequence[str | Path],
    name: str,
    check: Callable[[], None],
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Ended:
    """Run a command to its end. Its lines are JSON, {"progress": ...}, {"result": ...} or {"error": ...}, or words for people.

    `check` is called twice a second at least and raises if this process must stop: the other is stopped with it. Raises
    ProcessFailed, ProcessKilled.
    """
    child = children.spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said: deque[str] = deque(maxlen=20)
    result: dict[str, Any] | None = None
    memory = 0
    lines = _listen(child)
    try:
        while True:
            check()
            memory = max(memory, _peak_memory(child.pid))
            try:
                line = lines.get(timeout=CHECK_SECONDS)
            except queue.Empty:
                continue
            if line is None:
                break
            text = line.decode(errors="replace").rstrip()
            report = _report(text)
            if report is None:
                said.append(text)
            elif "result" in report:
                result = report["result"]
            elif "error" in report:
                said.append(str(report["error"]))
            elif "progress" in report:
                on_progress(report["progress"])
        code = child.wait()
    finally:
        children.stop(child, grace=GRACE_SECONDS)
    if code < 0 or code == SIGTERMED:
        raise ProcessKilled(f"the {name} was killed by signal {-code if code < 0 else code - 128}")
    if code != 0 or result is None:
        raise ProcessFailed("\n".join([f"the {name} ended with exit code {code}; its last words:", *said]))
    return Ended(result, result.get("peak_memory") or memory or None)


def _listen(child: subprocess.Popen[bytes]) -> queue.SimpleQueue[bytes | None]:
    """What it prints, line by line, and None at its end; read by a thread, so that nobody is bound to wait for it."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def listen() -> None:
        assert child.stdout is not None
        with child.stdout as printed:
            for line in printed:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, name="listener", daemon=True).start()
    return lines


def _report(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        report = json.loads(line)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None


def _peak_memory(pid: int) -> int:
    """The most bytes that it had resident so far; 0 where Linux does not say, or it is gone."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
