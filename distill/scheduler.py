"""Turning wheels: APScheduler looks at each task, `due` says whether it is time, a lease lets one process turn it."""

import logging
import threading

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlmodel import col, select, update

from distill import datasets, discovery, due, pipeline, runs, search
from distill.settings import DistillSettings
from store import leases
from store.columns import now
from store.session import Database
from store.states import TaskStatus
from store.tables import Task

log = logging.getLogger("stillroom.distill")


def run(db: Database, settings: DistillSettings, stop: threading.Event) -> None:
    """Turn wheels until `stop` is set."""
    # Gathering pairs goes on while a training runs; trainings go one after the other: they want the whole machine.
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(1), "turns": ThreadPoolExecutor(1)},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        timezone="UTC",
    )

    def look() -> None:
        discover(db, settings)
        with db.read() as session:
            tasks = session.exec(select(Task.id).where(Task.status != TaskStatus.IGNORED)).all()
        for task_id in tasks:
            gather(db, task_id, settings)
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


def discover(db: Database, settings: DistillSettings) -> None:
    """Find tasks in what is new, if nobody else does. What goes wrong is logged: pairs and trainings must not wait for it."""
    try:
        with leases.hold(db, "discovery", leases.this_thread(), settings.lease_seconds) as check:
            if check is not None:
                discovery.turn(db, check)
    except leases.LeaseLost as reason:
        log.info("discovery: %s", reason)
    except Exception:
        log.exception("tasks cannot be found")


def gather(db: Database, task_id: str, settings: DistillSettings) -> None:
    """Make a task's pairs, if nobody else does. What goes wrong is logged: the other tasks must not wait for it."""
    try:
        pipeline.gather_alone(db, task_id, settings)
    except (pipeline.NotReady, leases.LeaseLost) as reason:
        log.warning("%s: %s", task_id, reason)
    except Exception:
        log.exception("the pairs of %s cannot be made", task_id)


class Stopped(Exception):
    """This process was told to stop; the turn goes on where it was when it is started again."""


def turn_if_due(db: Database, task_id: str, settings: DistillSettings, stop: threading.Event) -> None:
    """One look at one task: turn its wheel if it is due and nobody else does."""
    if stop.is_set() or not _look(db, task_id).now:
        return
    with leases.hold(db, f"turn {task_id}", leases.this_thread(), settings.lease_seconds) as lease_check:
        if lease_check is None:
            return
        turn = _look(db, task_id)  # once more: another process may have turned it meanwhile
        if not turn.now:
            return

        def check() -> None:
            if stop.is_set():
                raise Stopped
            lease_check()

        log.info("turning %s: %s", task_id, turn.why)
        with db.read() as session:
            begun = runs.unfinished(session, task_id) or search.unfinished(session, task_id)
        began = begun.created_at if begun is not None else now()  # what it learns from was chosen then
        try:
            pipeline.turn(db, task_id, settings, check)
        except (pipeline.NotReady, runs.TrainerKilled, leases.LeaseLost, Stopped) as reason:
            log.info("%s: %s", task_id, reason)  # what was begun stays open and is turned again
            return
        except (datasets.NotTrainable, runs.RunFailed) as reason:
            log.warning("%s: %s", task_id, reason)
        with db.begin() as session:
            session.get_one(Task, task_id).turned_at = now()
            answered = update(Task).where(col(Task.id) == task_id, col(Task.train_asked_at) <= began)
            session.execute(answered.values(train_asked_at=None))


def _look(db: Database, task_id: str) -> due.Due:
    with db.read() as session:
        return due.decide(session, session.get_one(Task, task_id), now())
