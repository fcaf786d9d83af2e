"""What clients have been told, and whether the database says the same."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlmodel import col, select

from proxy.journal import STOPPED
from proxy.spool import NO_ROOM
from store.session import Database
from store.tables import Capture

PAGE = 1_000  # rows read at a time


@dataclass(slots=True)
class Entry:
    """One request, as its client saw it."""

    number: int  #: the request's `user`: no two are the same
    streamed: bool
    request: bytes  #: SHA-256 of its body
    id: str | None = None  #: as the answer's head said; None: there was no head
    status: int = 0
    acknowledged: bool = False  #: the last byte, or [DONE], has been received
    sent_at: float = 0.0
    first_at: float = 0.0  #: when the first part of its body came, by the monotonic clock
    acknowledged_at: float = 0.0
    left: bool = False  #: the client broke it off itself
    received: bytearray = field(default_factory=bytearray)
    digest: bytes = b""  #: SHA-256 of what was received, which is not kept then


class Ledger:
    """All requests of a run."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.acknowledged = 0
        self.broken = 0  #: requests whose connection broke, or was refused
        self.breaks: Counter[str] = Counter()  #: how
        self.errors: Counter[str] = Counter()  #: answers of 400 and above, by status and code

    def open(self, streamed: bool, body: dict[str, Any]) -> tuple[Entry, bytes]:
        """A new request, and its body."""
        number = len(self.entries) + 1
        data = orjson.dumps({**body, "stream": streamed, "user": str(number)})
        entry = Entry(number, streamed, hashlib.sha256(data).digest())
        self.entries.append(entry)
        return entry, data

    def acknowledge(self, entry: Entry) -> None:
        """All of the answer is here."""
        if not entry.acknowledged:
            self.acknowledged += 1
            entry.acknowledged, entry.acknowledged_at = True, time.monotonic()
            entry.digest = hashlib.sha256(entry.received).digest()
            entry.received = bytearray()


@dataclass
class Verdict:
    """The database against the ledger. What `faults` names must be 0.

    An answer that was acknowledged is `complete` with the client's bytes, or (`unkept`) was served while there was no room.
    One of which the client saw a head and not the end is there, and
    - incomplete, if its process was killed before the end was in the spool, the client left, or there was no room for the end;
    - complete, if the end was durable and the process was killed, or the connection broke, before the client had the last byte:
      the promise is one-sided. What the client has is then the beginning of what is kept.
    One of which there was no head may be there or not: its request may never have arrived. If it is, its request is what was sent.
    """

    requests: int = 0
    streams: int = 0
    acknowledged: int = 0
    missing: int = 0  #: acknowledged, and not there or not complete
    twice: int = 0  #: requests with more than one capture
    altered: int = 0  #: captures whose bytes are not what was sent, or not what was received
    lost: int = 0  #: the client saw a head, and nothing is there
    strange: int = 0  #: captures that nobody asked for, or in a state that is not allowed
    unkept: int = 0  #: acknowledged, and not there or without the answer; allowed only as far as the proxy has counted it
    open: int = 0  #: the client saw a head, and not the end
    open_incomplete: int = 0
    open_complete: int = 0
    headless: int = 0  #: the client saw nothing
    headless_incomplete: int = 0
    headless_complete: int = 0
    refused: int = 0  #: answered with an error of the proxy's own
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, int]:
        """What must not be."""
        named = ("missing", "twice", "altered", "lost", "strange")
        return {name: getattr(self, name) for name in named}


def compare(ledger: Ledger, db: Database, *, uncaptured: int | None = None) -> Verdict:
    """Read the whole database. With `uncaptured` as many acknowledged answers as that may be without a capture."""
    verdict = Verdict(requests=len(ledger.entries), streams=sum(entry.streamed for entry in ledger.entries))
    by_number = {entry.number: entry for entry in ledger.entries}
    found: dict[int, str] = {}
    for row in _rows(db):
        _judge(row, by_number, found, verdict, lenient=uncaptured is not None)
    for entry in ledger.entries:
        verdict.acknowledged += entry.acknowledged and entry.status < 400
        verdict.refused += entry.status >= 400
        verdict.open += entry.id is not None and not entry.acknowledged
        verdict.headless += entry.id is None
        if entry.number in found or entry.id is None or entry.status >= 400:
            continue
        if entry.acknowledged and uncaptured is not None:
            verdict.unkept += 1
        elif entry.acknowledged:
            _fault(verdict, "missing", f"{entry.id} is missing")
        elif uncaptured is None:
            _fault(verdict, "lost", f"{entry.id} had begun and is missing")
    if uncaptured is not None and verdict.unkept > uncaptured:
        _fault(verdict, "missing", f"{verdict.unkept} answers are not kept, {uncaptured} were counted", verdict.unkept - uncaptured)
    return verdict


def _rows(db: Database) -> Iterator[tuple[Any, ...]]:
    """All captures, as whoever reads them gets them. Raises if one cannot be read."""
    last = ""
    while True:
        with db.read() as session:
            captures = session.exec(select(Capture).where(col(Capture.id) > last).order_by(col(Capture.id)).limit(PAGE)).all()
            rows = [(each.id, each.status, each.request, each.response, each.error) for each in captures]
        yield from rows
        if len(rows) < PAGE:
            return
        last = rows[-1][0]


def _judge(row: Any, by_number: dict[int, Entry], found: dict[int, str], verdict: Verdict, *, lenient: bool) -> None:
    id, status, request, response, error = row
    entry = by_number.get(int(orjson.loads(request)["user"]))
    if entry is None or (entry.id is not None and entry.id != id and entry.number not in found):
        _fault(verdict, "strange", f"{id}: nobody asked for it")
        return
    if entry.number in found:
        _fault(verdict, "twice", f"{id} and {found[entry.number]} are one request")
        return
    found[entry.number] = id
    if hashlib.sha256(request).digest() != entry.request:
        _fault(verdict, "altered", f"{id}: its request is not what was sent")
    if status == "incomplete" and error == STOPPED and response:
        _fault(verdict, "strange", f"{id}: incomplete, with an answer")
    if entry.acknowledged and entry.status < 400:
        if status == "incomplete" and error == NO_ROOM and lenient:
            verdict.unkept += 1
        elif status != "complete":
            _fault(verdict, "missing", f"{id} is {status}: {error}")
        elif hashlib.sha256(response).digest() != entry.digest:
            _fault(verdict, "altered", f"{id}: its answer is not what was received")
        return
    if status not in ("complete", "incomplete") and entry.status < 400:
        _fault(verdict, "strange", f"{id} is {status}: {error}")
    if entry.id is None:
        verdict.headless_incomplete += status == "incomplete"
        verdict.headless_complete += status == "complete"
    elif entry.status < 400:
        verdict.open_incomplete += status == "incomplete"
        verdict.open_complete += status == "complete"
        if (status == "complete" or response) and not response.startswith(entry.received):
            _fault(verdict, "altered", f"{id}: what was received is not the beginning of what is kept")


def _fault(verdict: Verdict, name: str, example: str, count: int = 1) -> None:
    setattr(verdict, name, getattr(verdict, name) + count)
    if len(verdict.examples) < 20:
        verdict.examples.append(f"{name}: {example}")
