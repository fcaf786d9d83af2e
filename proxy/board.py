"""Where the processes of a proxy put what they have counted, so that whichever is asked for /metrics can show the sum.

    {folder}/lock               held while files are read and summed up
    {folder}/{process}.lock     held by flock as long as the process lives
    {folder}/{process}.json     its last snapshot
    {folder}/retained.json      what dead processes had counted, and which tasks have a label of their own

No counter goes down while any process of the proxy lives: what is shown has been written before, and what a dead process had
counted is kept. What a killed one counted after its last snapshot, and nobody has seen, is lost. A proxy that starts where none
lives begins at 0, as `rate()` and `increase()` understand. The folder must be on a local disk.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from proxy import exposition, locks
from proxy.exposition import Totals
from proxy.metrics import MAX_TASKS, METRICS, OTHER, Kind, Snapshot

log = logging.getLogger("stillroom.proxy")

FOLDER = "run/metrics"  #: below STILLROOM_HOME
PATIENCE = 5.0  # seconds to wait for the lock; who has it needs milliseconds


@dataclass(frozen=True)
class Retained:
    """What is left of dead processes."""

    counts: Snapshot
    tasks: tuple[str, ...]  #: those with a label of their own; once in it a task stays, so that no label's count ever moves
    folded: tuple[str, ...]  #: dead processes that are in `counts` and whose files may still be there


class Board:
    """One process's seat at the folder. Made after any fork; from any thread."""

    def __init__(self, folder: Path, snapshot: Callable[[], Snapshot]) -> None:
        """`snapshot` is asked for this process's counts, from whichever thread calls. Raises OSError."""
        for made in (folder.parent, folder):
            made.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._folder = folder
        self._snapshot = snapshot
        self._name = f"{os.getpid()}-{time.time_ns()}"
        self._published = b""
        self._failing = False
        self._publishing = threading.Lock()
        self._reading = threading.Lock()
        self._guard = _open(folder / "lock")
        with self._locked():
            self._seat = _open(folder / f"{self._name}.lock")
            fcntl.flock(self._seat, fcntl.LOCK_EX)
            if any(self._lives(name) for name in self._others()):
                self._gather([])
            else:
                self._clear()

    def publish(self) -> Snapshot:
        """This process's counts, written where the others see them if they have changed. A failure is only logged."""
        with self._publishing:
            counts = self._snapshot()
            body = orjson.dumps(counts)
            if body == self._published:
                return counts
            try:
                _write(self._folder / f"{self._name}.json", body)
            except OSError as error:
                if not self._failing:
                    log.error("counts cannot be written to %s, other processes do not see them: %s", self._folder, error.strerror)
                self._failing = True
            else:
                self._published, self._failing = body, False
            return counts

    def render(self, accept: str | None = None) -> tuple[bytes, bytes]:
        """The answer to /metrics, for all processes: body and content type, as the header `Accept` wants it.

        Waits for files and for other processes that do the same: not on an event loop. Raises OSError where it cannot be done, for
        a sum that lacks a process would look like a restart.
        """
        own = self.publish()  # first: what is about to be shown must outlive this process
        with self._locked():
            retained, living = self._gather([own])
        return exposition.write(merge([retained.counts], living, retained.tasks), accept)

    def close(self) -> None:
        """Leave: what this process has counted stays. The last call."""
        self.publish()
        os.close(self._seat)
        os.close(self._guard)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the files, among threads and processes. Raises TimeoutError."""
        until = time.monotonic() + PATIENCE
        if not self._reading.acquire(timeout=PATIENCE):
            raise TimeoutError(f"another thread holds {self._folder}/lock")
        try:
            while True:
                try:
                    fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise TimeoutError(f"another process holds {self._folder}/lock") from None
                    time.sleep(0.002)
            try:
                yield
            finally:
                fcntl.flock(self._guard, fcntl.LOCK_UN)
        finally:
            self._reading.release()

    def _others(self) -> list[str]:
        return sorted({path.stem for path in self._folder.glob("*-*.*")} - {self._name})

    def _lives(self, name: str) -> bool:
        try:
            seat = locks.take(self._folder / f"{name}.lock")
        except FileNotFoundError:
            return False
        if seat is not None:
            os.close(seat)
        return seat is None

    def _gather(self, living: list[Snapshot]) -> tuple[Retained, list[Snapshot]]:
        """What is kept of the dead, those included that have died since the last time, and what the living have published."""
        before = self._retained()
        counts, dead = [before.counts], []
        for name in self._others():
            if self._lives(name):
                living.append(self._read(f"{name}.json") or {})
            else:
                dead.append(name)
                counts += [] if name in before.folded else [self._read(f"{name}.json") or {}]
        tasks = _named(before.tasks, [*counts, *living])
        if len(counts) == 1 and tasks == before.tasks:
            self._remove(dead)
            return before, living
        after = Retained(_kept(merge(counts, [], tasks)), tasks, tuple(dead))
        with contextlib.suppress(OSError):  # a full disk: the files stay, and the same is done the next time
            _write(self._folder / "retained.json", orjson.dumps({"counts": after.counts, "tasks": tasks, "folded": dead}))
            self._remove(dead)
        return after, living

    def _retained(self) -> Retained:
        found = self._read("retained.json") or {"counts": {}, "tasks": (), "folded": ()}
        return Retained(found["counts"], tuple(found["tasks"]), tuple(found["folded"]))

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = orjson.loads((self._folder / name).read_bytes())
        except FileNotFoundError:  # it has published nothing yet
            return None
        except orjson.JSONDecodeError:
            log.error("%s in %s cannot be read, and its counts are lost", name, self._folder)
            return None
        return found

    def _remove(self, names: Collection[str]) -> None:
        for name in names:
            for path in self._folder.glob(f"{name}.*"):
                path.unlink(missing_ok=True)

    def _clear(self) -> None:
        self._remove(self._others())
        (self._folder / "retained.json").unlink(missing_ok=True)


def merge(dead: Sequence[Snapshot], living: Sequence[Snapshot], tasks: Collection[str]) -> Totals:
    """The values of several processes as one: of dead ones only what is counted, of living ones also what is measured.

    Tasks that are not in `tasks` are counted together.
    """
    totals: Totals = {}
    named = frozenset(tasks)
    for metric in METRICS:
        values = totals[metric.name] = {}
        lasts = metric.kind in (Kind.COUNTER, Kind.HISTOGRAM)
        by_task = metric.labels[:1] == ("task",)
        for snapshot in [*(dead if lasts else ()), *living]:
            for labels, value in snapshot.get(metric.name, ()):
                key = (OTHER, *labels[1:]) if by_task and labels[0] not in named else tuple(labels)
                values[key] = _together(metric.kind, values[key], value) if key in values else value
    return totals


def _together(kind: Kind, one: Any, other: Any) -> Any:
    match kind:
        case Kind.HISTOGRAM:
            return [a + b for a, b in zip(one, other, strict=True)]
        case Kind.MAX:
            return max(one, other)
        case Kind.MIN:
            return min(one, other)
        case Kind.AGE:
            return min(filter(None, (one, other)), default=0)
    return one + other


def _named(tasks: tuple[str, ...], snapshots: Sequence[Snapshot]) -> tuple[str, ...]:
    """The tasks that have a label of their own, with those that are new and for which there is room."""
    if len(tasks) >= MAX_TASKS:
        return tasks
    named = dict.fromkeys(tasks)
    for metric in METRICS:
        if metric.labels[:1] == ("task",):
            named.update((labels[0], None) for snapshot in snapshots for labels, _ in snapshot.get(metric.name, ()))
    named.pop(OTHER, None)
    return tuple(named)[:MAX_TASKS]


def _kept(totals: Totals) -> Snapshot:
    return {name: [(list(labels), value) for labels, value in values.items()] for name, values in totals.items() if values}


def _open(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _write(path: Path, body: bytes) -> None:
    """All of it or nothing, as a reader sees it. Raises OSError."""
    unfinished = path.with_suffix(".tmp")
    file = os.open(unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "wb") as out:
        out.write(body)
    unfinished.rename(path)
