"""When a task's wheel should turn: decided from rows alone, so that it is the same after any restart. Needs nothing heavy."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from pydantic import ValidationError
from sqlmodel import Session, col, func, select

from distill import choices, datasets, runs
from store import audit, policy
from store.columns import now
from store.policy import Policy
from store.states import PairStatus, ReviewKind, RunPurpose, SearchStatus, Split, TaskStatus
from store.tables import Dataset, LearningCurve, Pair, Review, Run, Search, Task


@dataclass(frozen=True)
class Due:
    """Whether a task's wheel should turn now, and why, or what is missing."""

    now: bool
    why: str


def decide(session: Session, task: Task, at: datetime) -> Due:
    """Decide from rows alone, so that it is the same after any restart."""
    if _left_open(session, task.id):
        return Due(True, "a turn that was begun is not at its end")
    if task.train_asked_at is not None:
        return Due(True, "a person asked for it")
    if task.status != TaskStatus.ACTIVE:
        return Due(False, f"the task is {task.status}")
    try:
        rule = policy.of(task)
    except ValidationError:
        return Due(False, "the task's policy cannot be read: set it again")
    ready = _ready(session, task, rule)
    pairs = sum(ready.values())
    trained = select(Run).where(Run.task_id == task.id, Run.purpose == RunPurpose.CANDIDATE)
    last = session.exec(trained.order_by(col(Run.created_at).desc())).first()
    turned = max(filter(None, [task.turned_at, last.created_at if last else None]), default=None)
    if last is None:
        if pairs < rule.first_pairs:
            kind = "pairs" if rule.train_unreviewed else "pairs approved by a person"
            return Due(False, f"{rule.first_pairs - pairs} more {kind} until the first training")
        why = f"{pairs} pairs are enough for a first training"
    elif rule.cron is not None and turned is not None:
        from apscheduler.triggers.cron import CronTrigger  # here: whoever only asks for a turn need not have it

        fire = CronTrigger.from_crontab(rule.cron, timezone="UTC").get_next_fire_time(None, turned + timedelta(seconds=1))
        return Due(
            fire is not None and fire <= at, f"by its timetable at {fire:%Y-%m-%d %H:%M} UTC" if fire else "never, by its timetable"
        )
    else:
        dataset = session.get_one(Dataset, last.dataset_id)
        needed = round((dataset.train_pairs or dataset.train_rows) * (1 + rule.growth)) - ready.get(Split.TRAIN, 0)
        if needed > 0:
            return Due(False, f"{needed} more training pairs until the next training")
        why = f"the pairs have grown by {rule.growth:.0%}"
    if turned is None:
        return Due(True, why)
    next_at = turned + timedelta(hours=rule.min_hours)
    if next_at > at:
        return Due(False, f"{why}; after the last turn not before {next_at:%Y-%m-%d %H:%M} UTC")
    return Due(True, why) if _news(session, task, turned) else Due(False, "there is nothing new since the last turn")


def ask(session: Session, task_id: str, by: str) -> None:
    """Ask for a turn now. Raises NotTrainable at once if the task has too little to learn from, or no readable policy."""
    task = session.get_one(Task, task_id)
    try:
        rule = policy.of(task)
    except ValidationError as error:
        raise datasets.NotTrainable("its policy cannot be read: set it again") from error
    datasets.check_trainable(choices.choose(session, task_id, rule))
    task.train_asked_at = now()
    audit.record(session, by, "train", task_id)


def _left_open(session: Session, task_id: str) -> bool:
    """Whether a run, a search or a learning curve is not at its end."""
    searching = select(Search.id).where(Search.task_id == task_id, Search.status == SearchStatus.RUNNING)
    curve = select(LearningCurve.run_id).where(LearningCurve.task_id == task_id, col(LearningCurve.finished_at).is_(None))
    begun = runs.unfinished(session, task_id), session.exec(searching).first(), session.exec(curve).first()
    return any(each is not None for each in begun)


def _ready(session: Session, task: Task, rule: Policy) -> dict[str | None, int]:
    """How many pairs there are to learn from, by split; where the policy asks for a person's word, those that have a good one."""
    query = select(Pair.split, func.count()).where(Pair.task_id == task.id, Pair.status == PairStatus.READY)
    if not rule.train_unreviewed:
        good = col(Review.kind).in_([ReviewKind.APPROVE, ReviewKind.CORRECT])
        query = query.where(sa.exists().where(col(Review.capture_id) == col(Pair.capture_id), good))
    return {split: count for split, count in session.exec(query.group_by(col(Pair.split)))}  # noqa: C416 - mypy wants it so


def _news(session: Session, task: Task, since: datetime) -> bool:
    """Whether a pair or a review has come since."""
    pair = select(Pair.id).where(Pair.task_id == task.id, Pair.created_at > since).limit(1)
    review = select(Review.id).join(Pair, col(Pair.capture_id) == col(Review.capture_id))
    review = review.where(Pair.task_id == task.id, Review.created_at > since).limit(1)
    return session.exec(pair).first() is not None or session.exec(review).first() is not None
