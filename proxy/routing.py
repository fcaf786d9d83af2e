"""Who answers: a pure choice, on a table that a thread keeps fresh."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.request import Wish
from store import prompts, routes, templates
from store.chat import CHAT
from store.routes import Table
from store.session import Database

log = logging.getLogger("stillroom.proxy")

NOBODY = Table(targets={}, engines=(), loaded=frozenset())


@dataclass(frozen=True)
class Choice:
    """Nobody named: the teacher alone."""

    student: str | None = None  #: the adapter to ask first
    spare: str | None = None  #: the adapter to ask if the teacher gives no answer
    why: str | None = None  #: why a student that the task has, or the client wished for, is not asked


def choose(
    table: Table,
    task_id: str,
    request: dict[str, Any],
    wish: Wish,
    endpoint: str = CHAT,
    *,
    trusted: Callable[[], bool],
    draw: float,
) -> Choice:
    """Choose for one request. `draw` is uniform in [0, 1); `trusted`: the client's key is known to be good."""
    target = table.targets.get(task_id)
    if wish is Wish.TEACHER:
        return Choice()
    if target is None:
        return Choice(why="the task has no student" if wish is Wish.STUDENT else None)
    if request.get("n") not in (None, 1):
        return Choice(why="the request asks for more than one choice")
    if field := prompts.beyond(request, endpoint):
        return Choice(why=f"the request has {field}, which the student is not given")
    if not table.engines or target.adapter_id not in table.loaded:
        return Choice(why=f"no engine has {target.adapter_id} loaded")
    if not trusted():
        return Choice(why="the teacher has not accepted this key within the last hour")
    if wish is Wish.AUTO and draw < target.holdback:
        return Choice(spare=target.adapter_id)
    return Choice(student=target.adapter_id)


class Routes(threading.Thread):
    """Reads the table once a second. While the database is away the last one read stays; at first it is empty."""

    def __init__(self, db: Database, seconds: float) -> None:
        super().__init__(name="routes", daemon=True)
        self.table = NOBODY  #: this and the next are replaced whole, so that the event loop may read them at any time
        self.directory = templates.NOTHING  #: which requests are of one task
        self._db = db
        self._seconds = seconds
        self._halt = threading.Event()
        self._read: float | None = None
        self._failed = True  # until a first success: that the database is away at the start is the drainer's to tell

    @property
    def age(self) -> float | None:
        """Seconds since the table was read; None before the first time."""
        return None if self._read is None else round(time.monotonic() - self._read, 1)

    def run(self) -> None:
        self.refresh()
        while not self._halt.wait(self._seconds):
            self.refresh()

    def refresh(self) -> None:
        """Read the table now; keep the old one if that is not possible."""
        try:
            with self._db.read() as session:
                self.table = routes.read(session)
                self.directory = templates.read(session, self.directory)
            self._read, self._failed = time.monotonic(), False
        except Exception as error:  # noqa: BLE001 - whatever it was: the last table is still good, and the thread must live
            if not self._failed:
                log.warning("the routes cannot be read, the last ones stay: %s", type(error).__name__)
            self._failed = True

    def stop(self) -> None:
        """Stop reading."""
        self._halt.set()
        self.join(1.0)
