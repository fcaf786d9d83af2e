"""Pairs out, as OpenAI fine-tuning JSONL: people's corrections applied, what they rejected left out."""

import hashlib
import os
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from sqlmodel import Session, col, select

from admin import reviews
from store import audit, policy
from store.session import Database
from store.states import PairStatus, ReviewKind, Split
from store.tables import Capture, Message, Pair, Task

ACTION: Final = "export"  #: in the audit log: the subject is the task, the detail has the file, if it was written to one
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
            corrections = {id: each.correction for id, each in standings.items() if each.correction}
            answers = redacted(session, task_id, corrections)
        if not rows:
            return
        for row in rows:
            if standings[row.capture_id].kind != ReviewKind.REJECT:
                yield _line(row, answers.get(row.capture_id) or row.completion)
        after = rows[-1].capture_id


def redacted(session: Session, task_id: str, corrections: dict[str, Message]) -> dict[str, Message]:
    """People's answers, by capture, with what the task's policy has replaced in pairs replaced in them too."""
    task = session.get(Task, task_id)
    if task is None or not task.policy.get("redact"):
        return corrections
    from distill import pairs

    rule = policy.of(task)
    captures = session.exec(select(Capture).where(col(Capture.id).in_(corrections)))
    return {each.id: pairs.redacted(each, rule, corrections[each.id]) for each in captures}


def note(session: Session, task_id: str, file: Path | None, *, by: str) -> None:
    """Record an export, so that an erasure knows of it; None: it was not written to a file here."""
    audit.record(session, by, ACTION, task_id, {"file": str(file.resolve()) if file is not None else None})


def ever(pair: Pair, answers: Iterable[Message]) -> list[bytes]:
    """The lines that a pair may have been exported as, now or before its reviews."""
    return [_line(pair, answer) for answer in (pair.completion, *answers)]


def without(file: Path, digests: Container[bytes]) -> bool:
    """Take the lines with these SHA-256 out of an exported file, all at once; False if it has none of them. Raises OSError."""
    partial = _partial(file)
    taken = False
    with file.open("rb") as lines, partial.open("wb") as kept:
        partial.chmod(file.stat().st_mode)
        for line in lines:
            if hashlib.sha256(line).digest() in digests:
                taken = True
            else:
                kept.write(line)
        kept.flush()
        os.fsync(kept.fileno())
    if taken:
        partial.replace(file)
    else:
        partial.unlink()
    return taken


def discard_torn(file: Path) -> bool:
    """Delete what an export into this file has left that was killed, or begun and not ended; False if there is nothing."""
    partial = _partial(file)
    there = partial.is_file()
    partial.unlink(missing_ok=True)
    return there


@contextmanager
def writing(file: Path) -> Iterator[BinaryIO]:
    """A file to write an export into: it is in its place when all is written, or not at all. Raises OSError."""
    partial = _partial(file)
    try:
        with partial.open("wb") as opened:
            yield opened
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.partial")


def _line(pair: Pair, answer: Message) -> bytes:
    line: dict[str, Any] = {"messages": [*pair.messages, answer]}
    if pair.tools:
        line["tools"] = pair.tools
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
