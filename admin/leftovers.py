"""What an erasure finds outside of rows: the spool, captures set aside, files, and pages of deleted rows in the database's file."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlmodel import col, select

from store.session import Database
from store.settings import StoreSettings
from store.states import DatasetStatus
from store.tables import Adapter, Capture, Dataset, Pair, Run, Search, Task, TaskAlias

BATCH = 200  #: rows in one statement
SPOOL_SECONDS = 30.0  # to wait for what is in the spool to be stored
PAGES_SECONDS = 30.0  # to wait for SQLite's readers


def drain(settings: StoreSettings) -> list[str]:
    """Have the spool stored; what may still be in it."""
    root = settings.home_path / "spool"
    if not any(root.glob("*/*.seg")):
        return []
    place = {"STILLROOM_HOME": str(settings.home_path), "STILLROOM_DATABASE_URL": settings.url}
    drained = subprocess.run(
        [sys.executable, "-P", "-m", "proxy.drain", str(SPOOL_SECONDS)],
        env={**os.environ, **place}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if drained.returncode != 0:
        return [f"the spool could not be stored, so captures in it are not erased: {drained.stderr.strip()[-300:]}"]
    left = drained.stdout.splitlines()
    return [f"{len(left)} files of the spool are still written to: erase again when the proxy has been idle"] if left else []


def set_aside(settings: StoreSettings, user: str | None, capture_ids: Container[str], key_ids: Container[str | None]) -> int:
    """Delete captures of theirs that the database would not take. Returns how many."""
    gone = 0
    for file in sorted((settings.home_path / "spool" / "rejected").glob("*.json")):
        try:
            begin = orjson.loads(file.read_bytes().partition(b"\n")[0])
            body = begin["body"].encode("latin-1")
        except (ValueError, KeyError):  # torn, by a full disk: nobody can read it
            file.unlink()
            continue
        if begin["id"] in capture_ids or begin.get("key") in key_ids or (user and names(user, body)):
            file.unlink()
            gone += 1
    return gone


def names(user: str, request: bytes) -> bool:
    """Whether a request's body is this user's."""
    if b"user" not in request and b"safety_identifier" not in request:
        return False
    try:
        body = orjson.loads(request)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(body, dict):
        return False
    metadata = body.get("metadata")
    return user in (body.get("user"), body.get("safety_identifier"), metadata.get("user") if isinstance(metadata, dict) else None)


def sweep(db: Database, settings: StoreSettings, task_ids: set[str]) -> tuple[list[str], int]:
    """Delete the files of erased datasets, and copies of rows whose pairs are gone.

    Returns the datasets whose files were still there, and how many other files went. `task_ids`: where to look for copies, beside
    the tasks of erased datasets.
    """
    swept, files = [], 0
    with db.read() as session:
        datasets = session.exec(select(Dataset)).all()
    kept = {settings.home_path / dataset.path for dataset in datasets if dataset.status != DatasetStatus.ERASED}
    for dataset in datasets:
        folder = settings.home_path / dataset.path
        if dataset.status == DatasetStatus.ERASED and folder.is_dir():
            shutil.rmtree(folder)
            swept.append(dataset.id)
    for folder in _orphans(db, settings):
        files += sum(file.is_file() for file in folder.rglob("*"))
        shutil.rmtree(folder, ignore_errors=True)
    touched = task_ids | {dataset.task_id for dataset in datasets if dataset.status == DatasetStatus.ERASED}
    for file in (file for task_id in touched for file in (settings.artifacts / task_id).rglob("*.jsonl")):
        if file.parent not in kept and file.is_file() and _has_gone(db, file):
            file.unlink()
            files += 1
    return swept, files


def _orphans(db: Database, settings: StoreSettings) -> list[Path]:
    """Folders of what was learned from erased things and is nobody's: no adapter's, or one's of a task that has nothing else."""
    root, settled = settings.artifacts, time.time() - 60  # younger ones may be getting their row
    folders = [each for name in ("runs/*", "searches/*", "task_*") for each in root.glob(name) if each.stat().st_mtime < settled]
    with db.read() as session:
        runs = session.exec(select(Run)).all()
        erased = set(session.exec(select(Dataset.id).where(Dataset.status == DatasetStatus.ERASED)))
        stale = {each.run_id: each.task_id for each in session.exec(select(Adapter).where(col(Adapter.stale_since).is_not(None)))}
        adapters = set(session.exec(select(Adapter.run_id)))
        empty = {
            task_id for task_id in stale.values()
            if session.exec(select(Capture.id).where(Capture.task_id == task_id).limit(1)).first() is None
        }  # fmt: skip
        searches = set(session.exec(select(Search.id)))
        tasks = {*session.exec(select(Task.id)), *session.exec(select(TaskAlias.id))}
    known = {run.id for run in runs} | searches | tasks
    gone = {run.id for run in runs if run.dataset_id in erased and (run.id not in adapters or stale.get(run.id) in empty)}
    found = [each for each in (root / "runs").glob("*") if each.name in gone]
    return found + [each for each in folders if each.name not in known]


def clean_pages(db: Database) -> list[str]:
    """Deleted rows stay in a database's file until their room is used again: have it written anew. What could not be done."""
    if not db.sqlite:
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM"))
        return [
            "PostgreSQL overwrites deleted rows only as it needs their room: VACUUM FULL does it at once, with locks. "
            "Its write-ahead log, archives and replicas, and all backups, have them until they are recycled"
        ]
    raw = db.engine.raw_connection()
    try:
        raw.execute("VACUUM")
        give_up = time.monotonic() + PAGES_SECONDS
        while True:
            busy, *_ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return []
            if time.monotonic() > give_up:
                return ["somebody reads the database all the time: its -wal file is emptied when it is closed"]
            time.sleep(0.1)
    except Exception as error:  # noqa: BLE001 - the driver's, whichever: locked, or no room for the copy
        return [f"the database's file could not be written anew, so deleted rows are in it until their room is used: {error}"]
    finally:
        raw.close()


def chunks(ids: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """BATCH at a time."""
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]


def _has_gone(db: Database, file: Path) -> bool:
    """Whether a copy of a dataset's rows, whole or torn, has one whose pair is gone; or is an old torn one."""
    ids: set[str] = set()
    with file.open("rb") as lines:
        for line in lines:
            try:
                ids.add(str(orjson.loads(line)["pair_id"]))
            except (ValueError, KeyError, TypeError):
                if time.time() - file.stat().st_mtime > 60:  # nobody is writing it
                    return True
    with db.read() as session:
        there = {id for some in chunks(list(ids)) for id in session.exec(select(Pair.id).where(col(Pair.id).in_(some)))}
    return bool(ids - there)
