"""Rows that people only read, as they are: datasets, verdicts, rollouts, routes, engines, audit events."""

from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, SQLModel, col, select

from admin import pages
from admin.pages import Page
from admin.problems import NotFound
from store.tables import AuditEvent, Dataset, Engine, Rollout, Route, Verdict


@dataclass(frozen=True)
class Kind:
    """A table that can be listed."""

    table: type[SQLModel]
    noun: str
    says: str
    by: tuple[str, ...] = ("created_at", "id")  #: order, newest first; the last one is the id


KINDS = {
    "datasets": Kind(Dataset, "dataset", "Frozen pairs, known by the hash of their content."),
    "verdicts": Kind(Verdict, "verdict", "The gate's decisions, with every number that made them."),
    "rollouts": Kind(Rollout, "rollout", "Adapters' ways into traffic and out of it."),
    "routes": Kind(Route, "route", "Who answers a task now. No route: the teacher.", by=("task_id",)),
    "engines": Kind(Engine, "engine", "vLLM servers.", by=("id",)),
    "audit": Kind(AuditEvent, "audit event", "Who did what, when."),
}


def listing(session: Session, kind: Kind, *, task_id: str | None = None, after: str | None = None, limit: int = 50) -> Page[Any]:
    """A page of a table's rows, newest first; of an audit log, a task's own events are those whose subject it is."""
    query = select(kind.table)
    if task_id is not None:
        column: Any = getattr(kind.table, "task_id", None) or getattr(kind.table, "subject", None)
        query = query.where(col(column) == task_id)
    rows, more = pages.fetch(session, query, kind.table, after=after, limit=limit, by=kind.by)
    return Page(data=rows, has_more=more)


def one(session: Session, kind: Kind, row_id: str) -> SQLModel:
    """One row. Raises NotFound."""
    key: Any = pages.number(row_id) if kind.table is AuditEvent else row_id
    found = None if key is None else session.get(kind.table, key)
    if found is None:
        raise NotFound(f"There is no {kind.noun} {row_id!r}.", "unknown_row")
    return found
