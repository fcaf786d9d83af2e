"""Forget a user, or single captures: captures, pairs, datasets' files, exports, evaluations' items, reviews, their words.

Read top to bottom; killed at any moment it is done again from the start, and what is done already is found done. Adapters that
learned from what is erased are marked stale, and their tasks are asked to train again; they go on answering until then, unless
they are to be taken back at once.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, Field, ValidationError, model_validator
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, col, select

from admin import exporting, leftovers, traces
from admin.leftovers import chunks
from admin.problems import Invalid, NotFound
from store import audit, captures, keys
from store.capture import KINDS, ROWS
from store.columns import now
from store.session import Database
from store.settings import StoreSettings
from store.states import DatasetStatus, RunStatus, TaskStatus
from store.tables import Adapter, AuditEvent, Capture, Dataset, DatasetPair, Pair, Review, Route, Run, Task, TaskAlias

PAGE = 500  #: captures read in one transaction
TRIES = 3
ROUNDS = 5  # of looking for captures: some may be stored while it runs
ERASED = "something that it learned from was erased"
Say = Callable[[str], None]


class Wanted(BaseModel):
    """Whom or what to forget: one of the three."""

    user: str | None = Field(None, min_length=1, description="As requests name them: `user`, `safety_identifier`, `metadata.user`.")
    key: str | None = Field(None, min_length=1, description="A virtual key's label or id: all that came under it.")
    captures: list[str] = Field([], description="Captures' ids, or their pairs'.")

    @model_validator(mode="after")
    def _one(self) -> "Wanted":
        if sum(map(bool, (self.user, self.key, self.captures))) != 1:
            raise ValueError("name a user, a key, or captures: one of the three")
        return self

    @property
    def subject(self) -> str:
        """For the audit log: a user only as a hash, since a name is personal data too."""
        if self.user is not None:
            return f"user sha256:{hashlib.sha256(self.user.encode()).hexdigest()[:32]}"
        return f"key {self.key}" if self.key else f"{len(self.captures)} captures"


class Report(BaseModel):
    """What was done."""

    captures: int = 0
    pairs: int = 0
    rows: dict[str, int] = Field({}, description="Rows deleted, by table.")
    tasks: list[str] = Field([], description="Tasks, by name, that had some of it.")
    datasets: list[str] = Field([], description="Datasets whose files are gone.")
    adapters: list[str] = Field([], description="Adapters that are stale: they learned from it, or from what was erased before.")
    live: list[str] = Field([], description="Those of them that still answer.")
    retrain: list[str] = Field([], description="Tasks, by name, that were asked to train again.")
    dictionaries: int = Field(0, description="Dictionaries with words of nobody else: what was packed with them is packed anew.")
    files: int = Field(0, description="Other files deleted, or with lines taken out: exports, leftovers, captures set aside.")
    notes: list[str] = Field([], description="What is left for a person to do.")


def wanted(**given: Any) -> Wanted:
    """What a person named. Raises Invalid unless it is one of the three."""
    try:
        return Wanted(**given)
    except ValidationError as error:
        raise Invalid("Name a user, a key, or captures: one of the three.", "bad_erasure") from error


def erase(
    db: Database, settings: StoreSettings, wanted: Wanted, *, by: str, why: str = "", take_back: bool = False, say: Say = print
) -> Report:
    """Forget. `take_back`: give tasks whose live adapter learned from it to the teacher at once.

    Requests that are being answered meanwhile are not covered. Raises NotFound for an unknown key.
    """
    report = Report()
    with db.begin() as session:
        key_ids = _keys(session, wanted.key) if wanted.key else []
        audit.record(session, by, "erasure begun", wanted.subject, {"why": why})

    say("storing what is in the spool")
    report.notes += leftovers.drain(settings)
    report.files += leftovers.set_aside(settings, wanted.user, {*wanted.captures}, key_ids)

    task_ids: set[str] = set()
    looked_to = ""
    for _ in range(ROUNDS):
        say("looking for captures")
        found, looked_to = _find(db, wanted, key_ids, looked_to)
        if not found:
            break
        task_ids |= found.keys()
        going = {capture_id for some in found.values() for capture_id in some}
        for task_id, capture_ids in found.items():
            say(f"{task_id}: erasing {len(capture_ids)} captures")
            _forget(db, task_id, capture_ids, going, report)

    say("deleting files, and what the database has of deleted rows")
    swept, files = leftovers.sweep(db, settings, task_ids)
    report.datasets += swept
    report.files += files
    _take_stock(db, settings, report, take_back=take_back, by=by)
    report.notes += leftovers.clean_pages(db)
    with db.begin() as session:
        counts = report.model_dump(include={"captures", "pairs", "datasets", "adapters", "dictionaries", "files"})
        audit.record(session, by, "erasure done", wanted.subject, {"why": why, **counts})
    return report


def _keys(session: Session, name: str) -> list[str]:
    key = keys.find(session, name)
    if key is None:
        raise NotFound(f"There is no key {name!r}. `stillroom keys list` lists them.", "unknown_key")
    return [key.id]


def _find(db: Database, wanted: Wanted, key_ids: Sequence[str], after: str) -> tuple[dict[str, list[str]], str]:
    """(the captures to erase, by task; how far was looked). For a user all captures after `after` are read."""
    found: dict[str, list[str]] = {}
    if wanted.user is not None:
        while True:
            with db.read() as session:
                page = captures.requests(session, after, PAGE)
            for capture_id, task_id, meta, request in page:
                if meta.get("user") == wanted.user or leftovers.names(wanted.user, request):
                    found.setdefault(task_id, []).append(capture_id)
            if not page:
                return found, after
            after = page[-1][0]
    with db.read() as session:
        pairs = [each for each in wanted.captures if each.startswith("pair_")]
        ids = {*wanted.captures, *session.exec(select(Pair.capture_id).where(col(Pair.id).in_(pairs)))}
        wished = KINDS.c.key_id.in_(key_ids) if key_ids else ROWS.c.id.in_(ids)
        query = sa.select(KINDS.c.task_id, ROWS.c.id).join(KINDS, ROWS.c.kind_id == KINDS.c.id).where(wished)
        for task_id, capture_id in session.execute(query.order_by(ROWS.c.id)):
            found.setdefault(task_id, []).append(capture_id)
    return found, after


def _forget(db: Database, task_id: str, capture_ids: Sequence[str], going: set[str], report: Report) -> None:
    """Everything that the database, exports and dictionaries have of these captures, all of one task. `going`: others' too."""
    lines: set[bytes] = set()
    with db.read() as session:
        task = session.get(Task, task_id)
        name = task_id if task is None else task.name
        for some in chunks(capture_ids):
            rows = session.exec(select(Pair).where(col(Pair.capture_id).in_(some))).all()
            said = session.exec(select(Review).where(col(Review.capture_id).in_(some), col(Review.correction).is_not(None))).all()
            for row in rows:
                corrections = [each.correction for each in said if each.capture_id == row.capture_id and each.correction]
                for each in [*corrections]:
                    corrections += exporting.redacted(session, task_id, {row.capture_id: each}).values()
                lines |= {hashlib.sha256(line).digest() for line in exporting.ever(row, corrections)}
    _exports(db, task_id, lines, report)
    # Before the captures go: of them it is known what was only theirs, also when this is done again.
    only = traces.only(db, task_id, going, (capture for some in chunks(capture_ids) for capture in _these(db, some)))
    report.dictionaries += traces.remove(db, only, going)
    for some in chunks(capture_ids):
        for left in reversed(range(TRIES)):
            try:
                with db.begin() as session:
                    gone = _delete(session, some)
                    if session.exec(select(Capture.id).where(Capture.task_id == task_id).limit(1)).first() is None:
                        _empty(session, task_id, report)
                break
            except IntegrityError:  # on PostgreSQL a pair was made of one of them at the same moment
                if not left:
                    raise
        report.captures += len(some)
        for table, number in gone.items():
            report.rows[table] = report.rows.get(table, 0) + number
    report.pairs = report.rows.get("pairs", 0)
    report.tasks += [name] if name not in report.tasks else []


def _delete(session: Session, capture_ids: Sequence[str]) -> dict[str, int]:
    """Delete captures and what is made of them; datasets, runs and adapters learn of it in the same transaction.

    Returns the number of rows that are gone with the captures, by table.
    """
    of_these = select(DatasetPair.dataset_id).join(Pair, col(Pair.id) == col(DatasetPair.pair_id))
    held = set(session.exec(of_these.where(col(Pair.capture_id).in_(capture_ids)).distinct()))
    for dataset in session.exec(select(Dataset).where(col(Dataset.id).in_(held), Dataset.status != DatasetStatus.ERASED)):
        dataset.status = DatasetStatus.ERASED
    for run in session.exec(select(Run).where(col(Run.dataset_id).in_(held))):
        if run.status in (RunStatus.QUEUED, RunStatus.RUNNING):
            run.status, run.error, run.finished_at = RunStatus.FAILED, ERASED, now()
    learned = select(Adapter).join(Run, col(Run.id) == col(Adapter.run_id)).where(col(Run.dataset_id).in_(held))
    for adapter in session.exec(learned.where(col(Adapter.stale_since).is_(None))):
        adapter.stale_since = now()
        task = session.get_one(Task, adapter.task_id)
        if task.status == TaskStatus.ACTIVE:
            task.train_asked_at = now()
    session.flush()
    gone = _dependents(session, ROWS, capture_ids)
    captures.delete(session, capture_ids)
    return gone


def _dependents(session: Session, table: sa.Table, ids: Sequence[Any]) -> dict[str, int]:
    """Delete all rows that refer to these, and what refers to them in turn. Returns how many, by table."""
    gone: dict[str, int] = {}
    for other in reversed(SQLModel.metadata.sorted_tables):
        for column in other.columns:
            if not any(key.column.table is table for key in column.foreign_keys):
                continue
            key = next(iter(other.primary_key.columns))
            for some in chunks(ids):
                if len(other.primary_key) == 1:  # nothing refers to rows with more
                    theirs = list(session.execute(sa.select(key).where(column.in_(some))).scalars())
                    for name, number in _dependents(session, other, theirs).items() if theirs else ():
                        gone[name] = gone.get(name, 0) + number
                number = session.execute(sa.delete(other).where(column.in_(some))).rowcount  # type: ignore[attr-defined]
                gone[other.name] = gone.get(other.name, 0) + number
    return gone


def _empty(session: Session, task_id: str, report: Report) -> None:
    """Nothing else is known of a task: its adapters learned from what is erased alone, and end; so does its row if it can."""
    if session.get(Task, task_id) is None:
        return
    if traces.forget(session, task_id):
        _drop(session, task_id)
        return
    adapters = session.exec(select(Adapter).where(Adapter.task_id == task_id)).all()
    if (route := session.get(Route, task_id)) is not None and route.adapter_id is not None:
        from serving import rollout

        rollout.rollback(session, task_id, by="erasure", why="all that its student learned from is erased")
    for adapter in adapters:
        adapter.transform, adapter.stale_since = None, adapter.stale_since or now()
    session.get_one(Task, task_id).train_asked_at = None
    if adapters:
        report.notes.append(f"nothing else was known of {task_id}: its {len(adapters)} adapters are deleted, its teacher answers")


def _drop(session: Session, task_id: str) -> None:
    """Delete a task of which there is no capture and no adapter, and all rows that name it."""
    session.flush()
    for table in reversed(SQLModel.metadata.sorted_tables):
        if "task_id" in table.c and table.name not in {"captures", "capture_kinds", "dictionaries"}:
            key = next(iter(table.primary_key.columns))
            ids = list(session.execute(sa.select(key).where(table.c.task_id == task_id)).scalars())
            _dependents(session, table, ids)
            session.execute(sa.delete(table).where(table.c.task_id == task_id))
    session.execute(sa.delete(Task).where(col(Task.id) == task_id))


def _exports(db: Database, task_id: str, lines: set[bytes], report: Report) -> None:
    """Take lines out of the files that the task's pairs were exported to."""
    with db.read() as session:
        once = session.exec(select(TaskAlias.id).where(TaskAlias.task_id == task_id)).all()  # tasks merged into it
        exported = select(AuditEvent).where(AuditEvent.action == exporting.ACTION)
        events = [event for event in session.exec(exported) if event.subject in {task_id, *once}]
    for name in dict.fromkeys(event.detail.get("file") for event in events):
        if not lines:
            return
        file = Path(name) if isinstance(name, str) else None
        if file is not None:
            report.files += exporting.discard_torn(file)
        if file is None or not file.is_file():
            where = f"to {name}, which is not there (any more)" if name else "through the API"
            report.notes.append(f"{task_id} was exported {where}: whoever has it has to take the lines out")
        elif exporting.without(file, lines):
            report.files += 1


def _take_stock(db: Database, settings: StoreSettings, report: Report, *, take_back: bool, by: str) -> None:
    """Which adapters are stale, by this or by an erasure that was broken off, and what becomes of those that answer."""
    with db.begin() as session:
        stale = session.exec(select(Adapter).where(col(Adapter.stale_since).is_not(None)).order_by(col(Adapter.created_at))).all()
        of_these = col(Task.id).in_({each.task_id for each in stale})
        asked = session.exec(select(Task.name).where(of_these, col(Task.train_asked_at).is_not(None)))
        report.adapters, report.retrain = [each.id for each in stale], list(asked)
        for route in session.exec(select(Route).where(col(Route.adapter_id).in_(report.adapters))).all():
            if take_back:
                from serving import rollout

                rollout.rollback(session, route.task_id, by=by, why=ERASED)
            else:
                report.live.append(str(route.adapter_id))
        _tell_cards(session, stale, settings)


def _tell_cards(session: Session, stale: Sequence[Adapter], settings: StoreSettings) -> None:
    """Stale adapters' cards say so from now on."""
    from distill import card

    for adapter in stale:
        if (settings.home_path / adapter.path).is_dir():
            card.publish(session, adapter, settings)


def _these(db: Database, capture_ids: Sequence[str]) -> Sequence[Capture]:
    with db.read() as session:
        return session.exec(select(Capture).where(col(Capture.id).in_(capture_ids))).all()
