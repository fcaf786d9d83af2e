"""Captures written many at a time: each kind once, bodies packed."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlmodel import Session

from store import blobs
from store.capture import DICTIONARIES, KIND, KINDS, OWN, ROWS, Capture, Dictionary, insert_new
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


def move(session: Session, ids: Sequence[str], task_id: str) -> None:
    """Give these captures to another task: kinds of its own, else as they were."""
    chosen = ROWS.c.id.in_(ids)
    old = session.execute(sa.select(KINDS).where(KINDS.c.id.in_(sa.select(ROWS.c.kind_id).where(chosen)))).mappings().all()
    kinds = {row["id"]: tuple(task_id if name == "task_id" else row[name] for name in KIND) for row in old}
    new = _kind_ids(session, {kind: _digest(kind) for kind in kinds.values()})
    for before, kind in kinds.items():
        session.execute(sa.update(ROWS).where(chosen, ROWS.c.kind_id == before).values(kind_id=new[kind]))


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


def withdraw(session: Session, dictionary_id: int) -> None:
    """Have no writer use a dictionary any more. What is packed with it can be read until `repack` has written it anew."""
    session.execute(sa.update(DICTIONARIES).where(DICTIONARIES.c.id == dictionary_id).values(withdrawn=True))


def repack(session: Session, dictionary_id: int, limit: int = 500) -> int:
    """Write some of the captures that are packed with a withdrawn dictionary anew, without one. Returns how many.

    When none is left the dictionary's content is deleted; its row stays, lest a writer that had it in mind puts it back.
    """
    content = session.get_one(Dictionary, dictionary_id).content()
    of_these = sa.select(ROWS.c.id, ROWS.c.packed, KINDS).join(KINDS, ROWS.c.kind_id == KINDS.c.id)
    rows = session.execute(of_these.where(KINDS.c.dictionary_id == dictionary_id).limit(limit).with_for_update(of=ROWS)).all()
    if not rows:
        session.execute(sa.delete(KINDS).where(KINDS.c.dictionary_id == dictionary_id))
        session.execute(sa.update(DICTIONARIES).where(DICTIONARIES.c.id == dictionary_id).values(packed=b""))
        return 0
    kinds = {row.id: (*(getattr(row, name) for name in KIND[:-1]), None) for row in rows}
    ids = _kind_ids(session, {kind: _digest(kind) for kind in kinds.values()})
    for row in rows:
        try:
            frame = None if row.packed is None else blobs.pack(blobs.unpack(row.packed, content))
        except blobs.BadFrame:  # nor can it be read without
            frame = row.packed
        session.execute(sa.update(ROWS).where(ROWS.c.id == row.id).values(kind_id=ids[kinds[row.id]], packed=frame))
    return len(rows)


def delete(session: Session, capture_ids: Sequence[str]) -> None:
    """Delete captures' rows, and kinds that are then nobody's. What refers to them must be gone."""
    of_these = ROWS.c.id.in_(capture_ids)
    kinds = set(session.execute(sa.select(ROWS.c.kind_id).where(of_these)).scalars()) - {None}
    session.execute(sa.delete(ROWS).where(of_these))
    used = sa.exists().where(ROWS.c.kind_id == KINDS.c.id)
    session.execute(sa.delete(KINDS).where(KINDS.c.id.in_(kinds), ~used))


def requests(session: Session, after: str, limit: int) -> list[tuple[str, str, dict[str, Any], bytes]]:
    """(id, task_id, meta, request) of the next captures by id, faster than they are read whole; b"" for what cannot be read."""
    columns = (ROWS.c.id, KINDS.c.task_id, ROWS.c.meta, ROWS.c.packed, ROWS.c.request, KINDS.c.dictionary_id)
    query = sa.select(*columns).join(KINDS, ROWS.c.kind_id == KINDS.c.id).where(ROWS.c.id > after).order_by(ROWS.c.id).limit(limit)
    rows = session.execute(query).all()
    used = {row.dictionary_id for row in rows} - {None}
    contents = {each.id: each.content() for each in session.scalars(sa.select(Dictionary).where(DICTIONARIES.c.id.in_(used)))}
    found = []
    for row in rows:
        request = row.request
        if row.packed is not None:
            try:
                request = blobs.unpack(row.packed, contents.get(row.dictionary_id))[0]
            except blobs.BadFrame:
                request = b""
        found.append((row.id, row.task_id, row.meta, request))
    return found


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
