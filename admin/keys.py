"""Virtual keys as people see and steer them. A key is shown once, when it is made; only its SHA-256 is kept."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from sqlmodel import Session, col, select

from admin import pages
from admin import tasks as admin_tasks
from admin.pages import Page
from admin.problems import Conflict, Invalid, NotFound
from store import keys, tasks
from store.columns import now
from store.keys import LabelTaken
from store.states import BudgetPeriod, KeyStatus
from store.tables import Task, VirtualKey

_NAMED = 20  # keys that an error names


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable: who or what will use the key")
    return text


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class Rules(BaseModel, extra="forbid"):
    """What a key may do. What is left out stays as it is; null takes a limit away."""

    tasks: list[str] | None = Field(None, max_length=100, description="Names or ids of the tasks it may use; none: all.")
    budget_usd: float | None = Field(None, ge=0, le=1e9, allow_inf_nan=False, description="US dollars that it may spend.")
    budget_period: BudgetPeriod | None = Field(None, description="What the budget is for: month, or total (the default).")
    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000, description="So many at once, and then that rate.")
    expires_at: Annotated[datetime, AfterValidator(_aware)] | None = Field(None, description="UTC where no zone is given.")


Label = Annotated[str, Field(min_length=1, max_length=100, description="Who or what will use it."), AfterValidator(_printable)]


class Wanted(Rules):
    """A key to make."""

    label: Label


class Changes(Rules):
    """What to change of a key."""

    label: Label | None = None


class KeyLine(BaseModel, from_attributes=True):
    """What is known of a key: not the key."""

    id: str
    label: str
    status: KeyStatus
    last4: str = Field(description="The key's end.")
    tasks: list[str] = Field(description="The tasks it may use, by name where they have been seen; none: all.")
    budget_usd: float | None
    budget_period: BudgetPeriod
    spent_usd: float = Field(description="In this month (UTC) for a monthly budget, else in total.")
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKey(KeyLine):
    """A key, the one time that it is shown."""

    key: str


def listing(session: Session, *, after: str | None = None, limit: int = 50) -> Page[KeyLine]:
    """A page of keys, newest first."""
    rows, more = pages.fetch(session, select(VirtualKey), VirtualKey, after=after, limit=limit)
    return Page(data=_lines(session, rows), has_more=more)


def one(session: Session, label_or_id: str) -> KeyLine:
    """A key. Raises NotFound."""
    return _lines(session, [find(session, label_or_id)])[0]


def make(session: Session, wanted: Wanted, *, by: str) -> NewKey:
    """A new key. Raises Conflict for a label in use, Invalid and NotFound for a task that cannot be."""
    rules = _decided(session, wanted)
    try:
        row, secret = keys.make(session, rules.pop("label"), **rules, by=by)
    except LabelTaken as error:
        raise _taken(wanted.label) from error
    return NewKey(**_lines(session, [row])[0].model_dump(), key=secret)


def change(session: Session, label_or_id: str, changes: Changes, *, by: str) -> KeyLine:
    """Change what is given. Raises NotFound, Conflict (a label in use, a revoked key), Invalid."""
    row = find(session, label_or_id)
    if row.revoked_at is not None:
        raise Conflict(f"The key {row.label!r} is revoked, and stays so: make another.", "key_revoked")
    try:
        keys.change(session, row, _decided(session, changes), by=by)
    except LabelTaken as error:
        raise _taken(str(changes.label)) from error
    return _lines(session, [row])[0]


def revoke(session: Session, label_or_id: str, *, by: str) -> KeyLine:
    """Close the proxies to it, within about a second. Raises NotFound."""
    row = find(session, label_or_id)
    keys.revoke(session, row, by=by)
    return _lines(session, [row])[0]


def find(session: Session, label_or_id: str) -> VirtualKey:
    """A key by label or id. Raises NotFound, which says what keys there are."""
    row = keys.find(session, label_or_id)
    if row is None:
        in_use = select(VirtualKey.label).where(col(VirtualKey.revoked_at).is_(None)).order_by(col(VirtualKey.created_at).desc())
        labels = session.exec(in_use.limit(_NAMED + 1)).all()
        known = f"There are: {', '.join(labels[:_NAMED])}{', ...' if len(labels) > _NAMED else ''}."
        none = "There are none: `stillroom keys add LABEL` makes one."
        raise NotFound(f"There is no key {label_or_id!r}. {known if labels else none}", "unknown_key")
    return row


def read(kind: type[Rules], given: dict[str, Any]) -> Any:
    """`kind` out of what a person typed. Raises Invalid."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise Invalid(f"This cannot be used: {reasons}. The rules are {', '.join(Rules.model_fields)}.", "bad_key") from error


def _decided(session: Session, rules: Rules) -> dict[str, Any]:
    """What was given, as the row has it."""
    decided = rules.model_dump(exclude_unset=True)
    if decided.get("expires_at") is not None and decided["expires_at"] <= now():
        raise Invalid("expires_at is over already: give a later time, or revoke the key.", "bad_key")
    if "label" in decided and decided["label"] is None:
        raise Invalid("A key has a label: give another, or none to change.", "bad_key")
    if "budget_period" in decided:
        decided["budget_period"] = decided["budget_period"] or BudgetPeriod.TOTAL
    if "tasks" in decided:
        decided["tasks"] = list(dict.fromkeys(_task(session, each.strip()) for each in decided["tasks"] or ()))
    return decided


def _task(session: Session, name_or_id: str) -> str:
    """The id of a task, or the name of one that no request has named yet."""
    if name_or_id.startswith("task_"):
        return admin_tasks.find(session, name_or_id).id
    if found := tasks.find(session, name_or_id):
        return found.id
    if not tasks.NAME.fullmatch(name_or_id):
        raise Invalid(str(tasks.BadTaskName(name_or_id)), "bad_task_name")
    return name_or_id


def _lines(session: Session, rows: Sequence[VirtualKey]) -> list[KeyLine]:
    ids = {task for row in rows for task in row.tasks}
    names = dict(session.exec(select(Task.id, Task.name).where(col(Task.id).in_(ids))).all()) if ids else {}
    at = now()
    derived = ("status", "tasks", "spent_usd")
    return [
        KeyLine(
            status=keys.status(row, at),
            tasks=[names.get(task, task) for task in row.tasks],
            spent_usd=keys.spent(row, at),
            **{name: getattr(row, name) for name in KeyLine.model_fields if name not in derived},
        )
        for row in rows
    ]


def _taken(label: str) -> Conflict:
    return Conflict(f"There is a key labelled {label!r} already: take another label, or revoke that one.", "label_taken")
