"""Requests on their way into the database as the proxy's drainer takes them there."""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlmodel import col, select

from proxy.insert import Writer
from proxy.journal import Logged
from proxy.spool import Record
from store.chat import CHAT
from store.session import Database
from store.tables import Capture

ANSWER = orjson.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]})


def logged(number: int, request: dict[str, Any], *, task: str | None = None, endpoint: str = CHAT) -> Logged:
    """An exchange as the spool has it; its capture is `cap_{number}`."""
    begin = {"kind": "begin", "id": f"cap_{number:08}", "at": 1.0e9 + number, "endpoint": endpoint, "task": task, "retry_count": 0}
    end = {"kind": "end", "id": begin["id"], "status": "complete", "http_status": 200, "served_by": "teacher"}
    return Logged(Record(begin, orjson.dumps(request)), Record(end, ANSWER))


def insert(writer: Writer, exchanges: Sequence[Logged], batch: int = 100) -> None:
    """As many transactions as the drainer would make."""
    for start in range(0, len(exchanges), batch):
        writer.insert(exchanges[start : start + batch])


def send(db: Database, requests: Iterable[dict[str, Any]], first: int = 0, **how: Any) -> None:
    """Store exchanges, oldest first."""
    insert(Writer(db), [logged(number, request, **how) for number, request in enumerate(requests, first)])


def task_ids(db: Database) -> list[str]:
    """The task of each capture, oldest first."""
    with db.read() as session:
        return [capture.task_id for capture in session.exec(select(Capture).order_by(col(Capture.id)))]
