"""The ledger itself: a database that is not as promised is found out."""

import orjson
import pytest

from proxy.journal import STOPPED
from store.states import CaptureStatus, Server
from store.tables import Capture
from tests.durability.ledger import Ledger, compare

ANSWER = b'{"choices":[]}'


@pytest.fixture
def ledger():
    """Three requests: acknowledged, begun, and without a head."""
    ledger = Ledger()
    for number in range(3):
        entry, _ = ledger.open(number == 1, {})
        entry.id = f"cap_{entry.number}" if number < 2 else None
        entry.status = 200
    ledger.entries[0].received += ANSWER
    ledger.acknowledge(ledger.entries[0])
    ledger.entries[1].received += ANSWER[:5]
    return ledger


@pytest.fixture
def store(sqlite):
    def store(number: int, *, id: str = "", status: str = "complete", response: bytes = ANSWER, error: str | None = None) -> None:
        request = orjson.dumps({"stream": number == 2, "user": str(number)})
        with sqlite.begin() as session:
            session.add(
                Capture(
                    id=id or f"cap_{number}", task_id="t", endpoint="/v1/chat/completions", status=CaptureStatus(status),
                    served_by=Server.TEACHER, request=request, response=response, error=error,
                )
            )  # fmt: skip

    return store


def test_all_as_promised(ledger, store, sqlite):
    store(1)
    store(2, status="incomplete", response=b"", error=STOPPED)
    verdict = compare(ledger, sqlite)
    assert set(verdict.faults.values()) == {0}
    assert (verdict.acknowledged, verdict.open_incomplete, verdict.headless) == (1, 1, 1)


@pytest.mark.parametrize(
    ("captures", "fault"),
    [
        ([(2, {})], "missing"),
        ([(1, {"status": "incomplete", "response": b""}), (2, {})], "missing"),
        ([(1, {}), (1, {"id": "cap_again"}), (2, {})], "twice"),
        ([(1, {"response": ANSWER + b" "}), (2, {})], "altered"),
        ([(1, {}), (2, {"response": b"else"})], "altered"),
        ([(1, {})], "lost"),
        ([(1, {}), (2, {}), (9, {})], "strange"),
        ([(1, {}), (2, {"status": "failed"})], "strange"),
        ([(1, {}), (2, {"status": "incomplete", "error": STOPPED})], "strange"),
    ],
)
def test_what_is_not_as_promised_is_found(ledger, store, sqlite, captures, fault):
    for number, how in captures:
        store(number, **how)
    assert {name for name, count in compare(ledger, sqlite).faults.items() if count} == {fault}


def test_more_that_is_not_kept_than_was_counted_is_missing(ledger, sqlite):
    assert compare(ledger, sqlite, uncaptured=1).missing == 0
    assert compare(ledger, sqlite, uncaptured=0).missing == 1
