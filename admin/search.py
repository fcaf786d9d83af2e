"""Conditions that listings share and that the two databases spell differently."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlmodel import Session, col

from store import captures
from store.states import ReviewKind
from store.tables import Review

UNREVIEWED = "none"  #: as a filter: no person has judged it


def holding(session: Session, query: Any, key: Any, text: str, count: int) -> list[str]:
    """The keys of the first `count` rows of a query of captures, or of rows joined with theirs, that hold this text.

    It is looked for in the last user message and in the answer, whatever the case of its letters, in any alphabet. They are packed,
    so that each row is looked at until there are enough: some hundred thousand a second.
    """
    wanted, found = text.lower(), []
    for value, prompt, answer in captures.texts(session, query, key):
        if wanted in prompt.lower() or wanted in answer.lower():
            found.append(value)
            if len(found) == count:
                break
    return found


def reviewed(kind: str, capture_id: Any) -> sa.ColumnElement[bool]:
    """A capture's standing: its last review that is no tag is of this kind, it has a tag at all, or (UNREVIEWED) no judgement."""
    of_capture = sa.select(col(Review.kind)).where(col(Review.capture_id) == capture_id)
    if kind == ReviewKind.TAG:
        return of_capture.where(col(Review.kind) == ReviewKind.TAG).exists()
    judged = of_capture.where(col(Review.kind) != ReviewKind.TAG)
    if kind == UNREVIEWED:
        return ~judged.exists()
    latest: Any = judged.order_by(col(Review.created_at).desc(), col(Review.id).desc()).limit(1).scalar_subquery()
    found: sa.ColumnElement[bool] = latest == ReviewKind(kind)  # type: ignore[call-arg]
    return found


def tagged(session: Session, tag: str, capture_id: Any) -> sa.ColumnElement[bool]:
    """A capture that a person put this tag on."""
    if session.connection().dialect.name == "postgresql":
        has_tag = sa.type_coerce(col(Review.tags), postgresql.JSONB).contains([tag])
    else:
        each = sa.func.json_each(col(Review.tags)).table_valued("value")
        has_tag = sa.select(each.c.value).where(each.c.value == tag).exists()
    return sa.select(col(Review.id)).where(col(Review.capture_id) == capture_id, has_tag).exists()
