"""Conditions that listings share and that the two databases spell differently."""

import sqlite3
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlmodel import Session, col

from store.states import ReviewKind
from store.tables import Review

UNREVIEWED = "none"  #: as a filter: no person has judged it


def contains(session: Session, text: str, *columns: Any) -> sa.ColumnElement[bool]:
    """One of the columns holds this text, whatever the case of its letters, in any alphabet."""
    connection = session.connection()
    lower = sa.func.lower
    if connection.dialect.name == "sqlite":  # its own lower() knows only ASCII
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.create_function("stillroom_lower", 1, _lower, deterministic=True)
        lower = sa.func.stillroom_lower
    found: sa.ColumnElement[bool] = sa.or_(*(lower(column).contains(text.lower(), autoescape=True) for column in columns))
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


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()
