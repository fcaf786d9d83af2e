"""When a task's wheel should turn: decided from rows alone, so that it is the same after any restart. Needs nothing heavy."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import Session, col, func, select

from distill import datasets, runs
from store import audit, policy
from store.columns import now
from store.states import PairStatus, Split, TaskStatus
from store.tables import Dataset, Pair, Run, Task


@dataclass(frozen=True)
class Due:
    """Whether a task's wheel should turn now, and why, or what is missing."""

    now: bool
    why: str


def decide(session: Session, task: Task, at: datetime) -> Due:
    """Decide from rows alone, so that it is the same after any restart."""
    if runs.unfinished(session, task.id) is not None:
        return Due(True, "a turn that was begun is not at its end")
    if task.train_asked_at is not None:
        return Due(True, "a person asked for it")
    if task.status != TaskStatus.ACTIVE:
        return Due(False, f"the task is {task.status}")
    rule = policy.of(task)
    ready = dict(
        session.exec(
            select(Pair.split, func.count())
            .where(Pair.task_id == task.id, Pair.status == PairStatus.READY)
            .group_by(col(Pair.split))
        ).all()
    )
    pairs = sum(ready.values())
    last = session.exec(select(Run).where(Run.task_id == task.id).order_by(col(Run.created_at).desc())).first()
    if last is None:
        if pairs >= rule.first_pairs:
            return Due(True, f"{pairs} pairs are enough for a first training")
        return Due(False, f"{rule.first_pairs - pairs} more pairs until the first training")
    if rule.cron is not None:
        from apscheduler.triggers.cron import CronTrigger  # here: whoever only asks for a turn need not have it

        fire = CronTrigger.from_crontab(rule.cron, timezone="UTC").get_next_fire_time(None, last.created_at + timedelta(seconds=1))
        return Due(
            fire is not None and fire <= at, f"by its timetable at {fire:%Y-%m-%d %H:%M} UTC" if fire else "never, by its timetable"
        )
    next_at = last.created_at + timedelta(hours=rule.min_hours)
    needed = round(session.get_one(Dataset, last.dataset_id).train_rows * (1 + rule.growth)) - ready.get(Split.TRAIN, 0)
    if needed > 0:
        return Due(False, f"{needed} more training pairs until the next training")
    if next_at > at:
        return Due(False, f"the pairs have grown enough; not before {next_at:%Y-%m-%d %H:%M} UTC")
    return Due(True, f"the pairs have grown by {rule.growth:.0%}")


def ask(session: Session, task_id: str, by: str) -> None:
    """Ask for a turn now. Raises NotTrainable at once if the task has too little to learn from."""
    task = session.get_one(Task, task_id)
    datasets.check_trainable(*datasets.select_rows(session, task_id, policy.of(task)))
    task.train_asked_at = now()
    audit.record(session, by, "train", task_id)
