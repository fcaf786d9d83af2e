"""Captures written many at a time: each kind once, bodies packed."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlmodel import Session

from store import blobs
from store.capture import KIND, KINDS, OWN, ROWS, Capture, Dictionary, insert_new
from store.packing import Packer

_UNPACKED = {"request": b"", "response": b"", "prompt_text": "", "answer_text": ""}


def write(session: Session, captures: Sequence[Capture], packer: Packer, *, tell: bool = False) -> list[str]:
    """Store those whose ids are not there yet, each exactly once, whoever else writes them too. Their tasks' rows are the caller's.

    Durations are kept in whole milliseconds, rounded up. Returns the ids of those stored; where others may write the same ones at
    the same moment it is to `tell`, which makes it dearer.
    """
    captures = sorted({capture.id: capture for capture in captures}.values(), key=lambda capture: capture.id)
    known = set(session.execute(sa.select(ROWS.c.id).where(ROWS.c.id.in_([capture.id for capture in captures]))).scalars())
    captures = [capture for capture in captures if capture.id not in known]
    if not captures:
        return []
    packed = packer.pack(session, captures)
    kinds = [
        (*(getattr(capture, name) for name in KIND[:-1]), dictionary)
        for capture, (dictionary, _) in zip(captures, packed, strict=True)
    ]
    ids = _kind_ids(session, {kind: _digest(kind) for kind in kinds})
    rows = [_row(capture, ids[kind], frame) for capture, kind, (_, frame) in zip(captures, kinds, packed, strict=True)]
    statement = insert_new(session, ROWS)
    if tell:
        return list(session.execute(statement.returning(ROWS.c.id), rows).scalars())
    session.execute(statement, rows)
    return [capture.id for capture in captures]


def texts(session: Session, query: Any, key: Any) -> Iterator[tuple[Any, str, str]]:
    """(the key, prompt_text, answer_text) of each row of a query of captures, or of rows joined with theirs, in its order."""
    columns = (key, Capture.packed, Capture.plain_prompt_text, Capture.plain_answer_text, Capture.dictionary_id)
    contents: dict[int | None, bytes | None] = {None: None}
    with session.execute(query.with_only_columns(*columns).execution_options(yield_per=500)) as rows:
        for value, packed, prompt, answer, dictionary_id in rows:
            if packed is None:
                yield value, prompt, answer
                continue
            if dictionary_id not in contents:
                contents[dictionary_id] = session.get_one(Dictionary, dictionary_id).content()
            _, _, *both = blobs.unpack(packed, contents[dictionary_id])
            yield value, *(text.decode("utf-8", "surrogatepass") for text in both)


def _row(capture: Capture, kind_id: int, frame: bytes) -> dict[str, Any]:
    row = {name: getattr(capture, name) for name in OWN}
    for name in ("first_byte_ms", "duration_ms"):
        row[name] = None if row[name] is None else math.ceil(row[name])
    return {**row, **_UNPACKED, "kind_id": kind_id, "packed": frame}


def _kind_ids(session: Session, kinds: Mapping[tuple[Any, ...], bytes]) -> dict[tuple[Any, ...], int]:
    """The kinds' ids, made if they are new. Nothing is remembered from batch to batch: the database may be another by then."""
    find = sa.select(KINDS.c.digest, KINDS.c.id).where(KINDS.c.digest.in_(kinds.values()))
    found = {row.digest: row.id for row in session.execute(find)}
    if missing := [kind for kind, digest in kinds.items() if digest not in found]:
        rows = [{**dict(zip(KIND, kind, strict=True)), "digest": kinds[kind]} for kind in missing]
        session.execute(insert_new(session, KINDS), rows)
        found = {row.digest: row.id for row in session.execute(find)}
    return {kind: found[digest] for kind, digest in kinds.items()}


def _digest(kind: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(orjson.dumps(kind)).digest()[:16]
