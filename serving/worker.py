"""The serving room's loop: look after vLLM, load what the rows ask for, write down what is, move rollouts on.

A database that is away stops none of the first two: what was read last is what is wanted.
"""

import logging
import os
import socket
import threading
import time
from dataclasses import replace
from datetime import timedelta

from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select

from serving import command, reconcile, rollout
from serving.engine import Attached, Engine, State, reap
from serving.preparation import Preparation
from serving.reconcile import Outcome, Plan, Reconciler
from serving.settings import ServingSettings
from serving.vllm import StudentError
from store import leases, migrate, tables
from store.columns import now
from store.session import Database
from store.states import EngineStatus

log = logging.getLogger("stillroom.serving")
HEARTBEAT = 5.0  # seconds
SILENCE = timedelta(seconds=60)  # an engine that says nothing for so long counts as down, lest everybody waits for it to load
LEASE_SECONDS = 10.0
NOTHING = Outcome(loaded=())


class Worker:
    """One engine's serving."""

    def __init__(self, db: Database, settings: ServingSettings, engine: Engine | Attached | None = None) -> None:
        self.db, self.settings = db, settings
        self.engine = engine or build_engine(settings)
        self.reconciler = Reconciler(settings)
        self.holder = f"{socket.gethostname()}:{os.getpid()}"
        self.plan: Plan | None = None
        self.outcome = NOTHING
        self._reconciled: tuple[str | None, int] | None = None  # url and restarts of the vLLM that has all it should have
        self._written: tuple[State, tuple[str, ...]] | None = None
        self._written_at = 0.0
        self._migrated = False
        self._database_down = False

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; then vLLM is stopped. Call from the main thread: vLLM dies with the thread that started it."""
        try:
            while not stop.is_set():
                self.tick()
                stop.wait(self.settings.serving_tick)
        finally:
            self.engine.stop()
            self.outcome = NOTHING
            try:
                self._write(self.engine.state)
            except DBAPIError as error:
                log.warning("the database cannot be told that vLLM was stopped: %s", error)

    def tick(self) -> None:
        """One pass over everything."""
        state = self.engine.tick()
        try:
            self._read()
            state = self._reconcile(state)
            self._write(state)
            self._advance()
        except DBAPIError as error:
            if not self._database_down:
                log.warning("the database does not answer, vLLM goes on: %s", error)
            self._database_down = True
            self._reconcile(state)
        else:
            if self._database_down:
                log.info("the database answers again")
            self._database_down = False

    def _read(self) -> None:
        if not self._migrated:
            migrate.upgrade(self.db)
            self._migrated = True
        with self.db.read() as session:
            self.plan = reconcile.read(session, self.settings)

    def _reconcile(self, state: State) -> State:
        """What to say of the engine: it is ready only once it has all that it had before."""
        server = self.engine.server
        if state.status != EngineStatus.READY or server is None or state.base_path is None:
            self.outcome = NOTHING
            return state
        life = (state.url, state.restarts)
        if self.plan is not None:
            try:
                self.outcome = self.reconciler.step(server, state.base_path, self.plan)
            except StudentError as error:
                log.warning("vLLM does not say what it has loaded: %s", error)
            else:
                self._reconciled = life if self.outcome.complete else self._reconciled
        if self._reconciled != life:
            return replace(state, status=EngineStatus.STARTING, detail="loading adapters")
        missing = [f"{name} is not loaded: {why}" for name, why in {**self.outcome.refused, **self.outcome.unread}.items()]
        return replace(state, detail="; ".join(missing))

    def _write(self, state: State) -> None:
        self._refuse()
        said = (state, self.outcome.loaded)
        if said == self._written and time.monotonic() - self._written_at < HEARTBEAT:
            return
        with self.db.begin() as session:
            row = session.get(tables.Engine, self.settings.engine_id)
            if row is None:
                row = tables.Engine(id=self.settings.engine_id, status=state.status)
                session.add(row)
            row.status, row.detail, row.restarts = state.status, state.detail, state.restarts
            row.url, row.pid, row.context = state.url, state.pid, state.context
            row.base_model, row.served_name = self.settings.base_model, state.served_name
            row.base_path = str(state.base_path) if state.base_path is not None else None
            row.loaded, row.heartbeat_at = list(self.outcome.loaded), now()
            silent = select(tables.Engine).where(
                col(tables.Engine.status).in_([EngineStatus.READY, EngineStatus.STARTING]),
                col(tables.Engine.heartbeat_at) < now() - SILENCE,
                tables.Engine.id != row.id,
            )
            for other in session.exec(silent):
                other.status, other.detail = EngineStatus.DOWN, f"has said nothing since {other.heartbeat_at:%Y-%m-%d %H:%M} UTC"
        self._written, self._written_at = said, time.monotonic()

    def _refuse(self) -> None:
        """Tell the rows of adapters that must not be loaded, or that vLLM would not load. Live ones are only reported."""
        needs = {each.id: each.need for each in self.plan.wanted} if self.plan is not None else {}
        refused = {name: why for name, why in self.outcome.refused.items() if needs.get(name) not in {None, reconcile.Need.LIVE}}
        if refused:
            with self.db.begin() as session:
                for name, why in refused.items():
                    rollout.refuse(session, name, why)

    def _advance(self) -> None:
        with self.db.read() as session:
            if not rollout.due(session):
                return
        with self.db.begin() as session:
            if leases.acquire(session, "serving.rollout", self.holder, LEASE_SECONDS) is None:
                return
            try:
                with session.begin_nested():
                    steps = rollout.advance(session)
            except rollout.NotReady as reason:  # the rows changed since they were looked at
                log.info("nothing is moved on now: %s", reason)
                return
        for step in steps:
            log.info("%s: %s (%s)", step.adapter_id, step.verb.value, step.why)


def build_engine(settings: ServingSettings) -> Engine | Attached:
    """The engine that the settings ask for. What an earlier life of it left behind is killed."""
    preparation = Preparation(settings.base_model, settings.models_path)
    if settings.student_url is not None:
        return Attached(settings.student_url, preparation)
    marker, log_file = f"{settings.engine_id} {settings.home_path}", settings.logs / "vllm.log"
    reap(marker, log_file)
    return Engine(
        marker=marker,
        preparation=preparation,
        build=lambda base_path: command.build(settings, base_path),
        model=settings.base_model,
        log_file=log_file,
        start_timeout=settings.engine_start_timeout,
    )
