"""Virtual keys: stillroom's own, given to clients in place of the operator's. Only SHA-256 of them is kept.

What a key has spent is what the store knows: the drainer charges a capture where it writes it, about a second after the answer.
"""

import hashlib
import math
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from store import audit, tasks
from store.columns import now
from store.states import BudgetPeriod, KeyStatus
from store.tables import Capture, VirtualKey

PREFIX = "sk-stillroom-"
_TASK_ID = re.compile(r"task_[0-9a-f]{16}")


class LabelTaken(ValueError):
    """There is a key with this label already."""


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key that is not revoked, as the proxy needs it."""

    id: str
    label: str
    tasks: frozenset[str]  #: ids of the tasks it may use; empty: all
    budget_usd: float | None
    budget_period: BudgetPeriod
    spent_usd: float  #: of the budget, in its present period
    requests_per_minute: int | None
    expires_at: float | None  #: seconds since 1970


def read(session: Session) -> dict[bytes, KeyView]:
    """Every key that is not revoked, by its SHA-256. One query."""
    month = _month(now())
    columns: list[Any] = [
        VirtualKey.sha256, VirtualKey.id, VirtualKey.label, VirtualKey.tasks, VirtualKey.budget_usd, VirtualKey.budget_period,
        VirtualKey.spent_usd, VirtualKey.spent_in, VirtualKey.requests_per_minute, VirtualKey.expires_at,
    ]  # fmt: skip
    rows = session.execute(sa.select(*columns).where(col(VirtualKey.revoked_at).is_(None)))
    return {
        bytes.fromhex(sha256): KeyView(
            id_,
            label,
            frozenset(map(_task_id, tasks)),
            budget_usd,
            period,
            _spent(period, spent_usd, spent_in, month),
            per_minute,
            expires_at.timestamp() if expires_at else None,
        )
        for sha256, id_, label, tasks, budget_usd, period, spent_usd, spent_in, per_minute, expires_at in rows
    }


def make(
    session: Session,
    label: str,
    *,
    tasks: Sequence[str] = (),
    budget_usd: float | None = None,
    budget_period: BudgetPeriod = BudgetPeriod.TOTAL,
    requests_per_minute: int | None = None,
    expires_at: datetime | None = None,
    by: str,
) -> tuple[VirtualKey, str]:
    """A new key and its secret, which nobody can read again. `tasks`: ids, or names that clients will give.

    Raises LabelTaken.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    key = VirtualKey(
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        last4=secret[-4:],
        label=label,
        tasks=list(tasks),
        budget_usd=budget_usd,
        budget_period=budget_period,
        requests_per_minute=requests_per_minute,
        expires_at=expires_at,
    )
    try:
        with session.begin_nested():
            session.add(key)
    except IntegrityError as error:
        raise LabelTaken(label) from error
    audit.record(session, by, "key made", key.id, _rules(key))
    return key, secret


def find(session: Session, label_or_id: str) -> VirtualKey | None:
    """A key by id or by label. Of those with this label the one in use, else the one that was revoked last."""
    if "\0" in label_or_id:  # PostgreSQL would not even look
        return None
    if found := session.get(VirtualKey, label_or_id):
        return found
    with_label = select(VirtualKey).where(VirtualKey.label == label_or_id)
    in_use = session.exec(with_label.where(col(VirtualKey.revoked_at).is_(None))).first()
    return in_use or session.exec(with_label.order_by(col(VirtualKey.revoked_at).desc())).first()


def task_ids(key: VirtualKey) -> list[str]:
    """The ids of the tasks that it may be used for."""
    return [_task_id(each) for each in key.tasks]


def change(session: Session, key: VirtualKey, changes: Mapping[str, Any], *, by: str) -> None:
    """Change label, tasks, budget, rate limit or expiry; another period begins with nothing spent. Raises LabelTaken."""
    before = _rules(key)
    if changes.get("budget_period", key.budget_period) != key.budget_period:
        key.spent_usd, key.spent_in = 0.0, ""
    try:
        with session.begin_nested():
            for name, value in changes.items():
                setattr(key, name, value)
    except IntegrityError as error:
        raise LabelTaken(changes["label"]) from error
    if (after := _rules(key)) != before:
        audit.record(session, by, "key changed", key.id, {"from": before, "to": after})


def revoke(session: Session, key: VirtualKey, *, by: str) -> None:
    """Close the proxies to it, within about a second, for good. Its row stays: captures speak of it."""
    if key.revoked_at is None:
        key.revoked_at = now()
        audit.record(session, by, "key revoked", key.id, {"label": key.label})


def spent(key: VirtualKey, at: datetime) -> float:
    """US dollars that count towards its budget at this time."""
    return _spent(key.budget_period, key.spent_usd, key.spent_in, _month(at))


def status(key: VirtualKey, at: datetime) -> KeyStatus:
    """How the proxies take it at this time."""
    if key.revoked_at is not None:
        return KeyStatus.REVOKED
    if key.expires_at is not None and key.expires_at <= at:
        return KeyStatus.EXPIRED
    return KeyStatus.SPENT if key.budget_usd is not None and spent(key, at) >= key.budget_usd else KeyStatus.ACTIVE


def charge(session: Session, key_id: str, cost_usd: float, at: datetime) -> None:
    """Put a cost on a key, in the month (UTC) of `at`. Call it where the capture is written, for each one once.

    A key's count goes to the newest month; what belongs to an earlier one comes too late for a monthly budget.
    """
    if not 0 < cost_usd < math.inf:
        return
    month, counted = _month(at), col(VirtualKey.spent_in)
    monthly, so_far = col(VirtualKey.budget_period) == BudgetPeriod.MONTH, col(VirtualKey.spent_usd)
    first, late = monthly & (counted < month), monthly & (counted > month)
    session.execute(
        sa.update(VirtualKey)
        .where(col(VirtualKey.id) == key_id)
        .values(
            spent_usd=sa.case((first, cost_usd), (late, so_far), else_=so_far + cost_usd),
            spent_in=sa.case((counted < month, month), else_=counted),
        ),
        execution_options={"synchronize_session": False},
    )


def settle(session: Session, captures: Iterable[Capture]) -> None:
    """Charge what these captures cost: one update a key and month, in one order, so that no two drainers wait in a circle."""
    costs: dict[tuple[str, str], tuple[float, datetime]] = {}
    for capture in captures:
        if capture.key_id is not None and capture.cost_usd is not None:
            which = (capture.key_id, _month(capture.created_at))
            costs[which] = (costs.get(which, (0.0,))[0] + capture.cost_usd, capture.created_at)
    for (key_id, _), (cost_usd, at) in sorted(costs.items()):
        charge(session, key_id, cost_usd, at)


def _rules(key: VirtualKey) -> dict[str, Any]:
    """What a person decided of a key, for the audit log."""
    return {
        "label": key.label,
        "tasks": key.tasks,
        "budget_usd": key.budget_usd,
        "budget_period": key.budget_period,
        "requests_per_minute": key.requests_per_minute,
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
    }


def _spent(period: BudgetPeriod, usd: float, counted: str, month: str) -> float:
    return 0.0 if period == BudgetPeriod.MONTH and counted != month else usd


def _month(at: datetime) -> str:
    utc = at.astimezone(UTC)
    return f"{utc.year}-{utc.month:02}"


@lru_cache(10_000)
def _task_id(name_or_id: str) -> str:
    """The id that a request naming this task has; an id is one already."""
    return name_or_id if _TASK_ID.fullmatch(name_or_id) else tasks.identify({}, name_or_id).id
