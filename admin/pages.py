"""One page of a listing: newest first, found again by the id of the last row seen, so that new rows shift nothing."""

from typing import Any, Generic, Literal, TypeVar

import sqlalchemy as sa
from pydantic import BaseModel, Field
from sqlalchemy.orm import InstrumentedAttribute
from sqlmodel import Session
from sqlmodel.sql.expression import SelectOfScalar

from admin import search
from admin.problems import NotFound

T = TypeVar("T")
Row = TypeVar("Row")

LIMIT = 200  # rows of a page at most


class Page(BaseModel, Generic[T]):
    """A list as OpenAI gives them: ask for more with `after` = the last row's id."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool = Field(description="Whether there are more rows after the last of these.")


def fetch(
    session: Session,
    query: SelectOfScalar[Row],
    table: type[Row],
    *,
    after: str | None,
    limit: int,
    by: tuple[str, ...] = ("created_at", "id"),
    descending: bool = True,
    find: dict[str, Any] | None = None,
    q: str = "",
) -> tuple[list[Row], bool]:
    """A page of `query`'s rows, and whether there are more. Raises NotFound if there is no row `after`.

    `by` names the columns that order the rows, together unique, the last of them the one `after` speaks of; `find` is the rest of
    the primary key, where it has one; `q` is text in the captures that the query is about.
    """
    columns: list[InstrumentedAttribute[Any]] = [getattr(table, name) for name in by]
    if after is not None:
        last = _row(session, table, columns[-1], after, find or {})
        query = query.where(_beyond(columns, [getattr(last, name) for name in by], descending))
    ordered, most = query.order_by(*((c.desc() if descending else c.asc()) for c in columns)), min(limit, LIMIT) + 1
    if q:
        ordered = ordered.where(columns[-1].in_(search.holding(session, ordered, columns[-1], q, most)))
    rows = list(session.exec(ordered.limit(most)).all())
    return rows[: min(limit, LIMIT)], len(rows) > min(limit, LIMIT)


def number(value: str) -> int | None:
    """The id of a counted row; None if there can be no such row."""
    return int(value) if value.isdecimal() and len(value) <= 18 else None


def _row(session: Session, table: type[Row], key: InstrumentedAttribute[Any], value: str, find: dict[str, Any]) -> Row:
    found: Row | None = None
    counted = isinstance(key.type, sa.Integer)
    if not counted or number(value) is not None:
        found = session.get(table, {**find, key.key: number(value) if counted else value})
    if found is None:
        raise NotFound(f"`after` is {value!r}, and there is no such row to go on from", "unknown_cursor")
    return found


def _beyond(columns: list[InstrumentedAttribute[Any]], values: list[Any], descending: bool) -> sa.ColumnElement[bool]:
    """Rows that come after the one with these values: the first column that differs decides."""
    column, value = columns[0], sa.literal(values[0], columns[0].type)
    past: sa.ColumnElement[bool] = column < value if descending else column > value
    if len(columns) == 1:
        return past
    at_or_past = column <= value if descending else column >= value  # what an index can be asked for
    return sa.and_(at_or_past, sa.or_(past, _beyond(columns[1:], values[1:], descending)))
