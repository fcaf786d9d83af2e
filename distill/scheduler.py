"""When the wheel turns: APScheduler looks at each task, the rows say whether it is due, a lease lets one process turn it."""

import logging
import os
import socket
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlmodel import Session, col, func, select

from distill import datasets, pipeline, runs
from distill.settings import DistillSettings
from store import audit, leases, policy
from store.columns import now
from store.session import Database
from store.states import PairStatus, Split, TaskStatus
from store.tables import Dataset, Pair, Run, Task

log = logging.getLogger("stillroom.distill")


@dataclass(frozen=True)
class Due:
    """Whether a task's wheel should turn now, and why, or what is missing."""

    now: bool
    why: str


def due(session: Session, task: Task, at: datetime) -> Due:
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


def request_training(session: Session, task_id: str, by: str) -> None:
    """Ask for a turn now. Raises NotTrainable at once if the task has too little to learn from."""
    task = session.get_one(Task, task_id)
    datasets.check_trainable(*datasets.select_rows(session, task_id, policy.of(task)))
    task.train_asked_at = now()
    audit.record(session, by, "train", task_id)


def run(db: Database, settings: DistillSettings, stop: threading.Event) -> None:
    """Turn wheels until `stop` is set."""
    # Gathering pairs goes on while a training runs; trainings go one after the other: they want the whole machine.
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(1), "turns": ThreadPoolExecutor(1)},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        timezone="UTC",
    )

    def look() -> None:
        with db.read() as session:
            tasks = session.exec(select(Task.id).where(Task.status != TaskStatus.IGNORED)).all()
        for task_id in tasks:
            with leases.hold(db, f"pairs {task_id}", _holder(), settings.lease_seconds) as check:
                if check is not None:
                    pipeline.gather(db, task_id)
        for job in scheduler.get_jobs():
            if job.id != "look" and job.id not in tasks:
                job.remove()
        for task_id in tasks:
            if scheduler.get_job(task_id) is None:
                scheduler.add_job(
                    turn_if_due, "interval", seconds=settings.tick_seconds, next_run_time=now(), id=task_id, executor="turns",
                    args=[db, task_id, settings, stop],
                )  # fmt: skip

    scheduler.add_job(look, "interval", seconds=settings.tick_seconds, next_run_time=now(), id="look")
    scheduler.start()
    stop.wait()
    scheduler.shutdown(wait=True)


class Stopped(Exception):
    """This process was told to stop; the turn goes on where it was when it is started again."""


def turn_if_due(db: Database, task_id: str, settings: DistillSettings, stop: threading.Event) -> None:
    """One look at one task: turn its wheel if it is due and nobody else does."""
    with db.read() as session:
        verdict = due(session, session.get_one(Task, task_id), now())
    if not verdict.now or stop.is_set():
        return
    with leases.hold(db, f"turn {task_id}", _holder(), settings.lease_seconds) as lease_check:
        if lease_check is None:
            return

        def check() -> None:
            if stop.is_set():
                raise Stopped
            lease_check()

        log.info("turning %s: %s", task_id, verdict.why)
        try:
            pipeline.turn(db, task_id, settings, check)
        except (pipeline.NotReady, runs.TrainerKilled, leases.LeaseLost, Stopped) as reason:
            log.info("%s: %s", task_id, reason)  # what was begun stays open and is turned again
            return
        except (datasets.NotTrainable, runs.RunFailed) as reason:
            log.warning("%s: %s", task_id, reason)
        with db.begin() as session:
            session.get_one(Task, task_id).train_asked_at = None


def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
