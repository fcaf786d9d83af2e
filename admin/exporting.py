"""Pairs out, as OpenAI fine-tuning JSONL: people's corrections applied, what they rejected left out."""

from collections.abc import Iterator

import orjson
from sqlmodel import col, select

from admin import reviews
from store.session import Database
from store.states import PairStatus, ReviewKind, Split
from store.tables import Pair

PAGE = 500  # pairs read in one transaction


def lines(db: Database, task_id: str, split: Split | None = None) -> Iterator[bytes]:
    """A task's pairs, oldest capture first, a line each: `{"messages": [..., answer], "tools": [...]}`.

    Some hundred pairs are held at a time, and no transaction longer than it takes to read them.
    """
    after = ""
    while True:
        query = select(Pair).where(Pair.task_id == task_id, Pair.status == PairStatus.READY, col(Pair.capture_id) > after)
        if split is not None:
            query = query.where(Pair.split == split)
        with db.read() as session:
            rows = session.exec(query.order_by(col(Pair.capture_id)).limit(PAGE)).all()
            standings = reviews.standings(session, [row.capture_id for row in rows])
        if not rows:
            return
        for row in rows:
            standing = standings[row.capture_id]
            if standing.kind == ReviewKind.REJECT:
                continue
            line = {"messages": [*row.messages, standing.correction or row.completion]}
            if row.tools:
                line["tools"] = row.tools
            yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        after = rows[-1].capture_id
