"""Datasets: pairs frozen into three JSONL files whose content hash is the dataset's identity."""

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import Session, insert, select, update

from distill.choices import Choice, Chosen, choose, ready
from store import audit
from store.answers import text_of
from store.policy import Policy
from store.session import Database
from store.settings import StoreSettings
from store.tables import Dataset, DatasetPair, Message, Pair

MIN_TRAIN = 20
FILES = ("train", "validation", "holdout")
FILES_BEFORE = ("train", "holdout")  # of datasets frozen before there was a validation split


class Damaged(Exception):
    """A dataset's files are missing or changed; the message says which."""


class NotTrainable(Exception):
    """The task's pairs cannot teach a student; the message says why and what to do."""


@dataclass(frozen=True)
class Row:
    """A line of a dataset's file."""

    pair_id: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    response_format: dict[str, Any] | None
    completion: Message
    rejected: Message | None = None  #: the answer that a person replaced or rejected: `completion` is to be preferred to it
    weight: float = 1.0  #: of the row's loss; 1 on average

    def line(self) -> bytes:
        """Keys in the order in which they came: a template that shows a tool's schema shows it in that order."""
        usual = {"rejected": None, "weight": 1.0}
        told = {key: value for key, value in self.__dict__.items() if key not in usual or value != usual[key]}
        return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)


def select_rows(session: Session, task_id: str, policy: Policy) -> dict[str, list[Row]]:
    """The rows a dataset made now would have, by file. See `choices.choose`."""
    return _rows(session, task_id, choose(session, task_id, policy))


def check_trainable(chosen: Chosen) -> None:
    """Raises NotTrainable, with what to do, when there is too little or nothing to learn."""
    train, holdout, pairs = len(chosen.train), len(chosen.holdout), chosen.pairs
    if train < MIN_TRAIN or not holdout:
        found = f"there are {train} pairs to train on and {holdout} held out; at least {MIN_TRAIN} and 1 are needed. "
        if chosen.unreviewed:
            raise NotTrainable(
                f"{found}{chosen.unreviewed} more wait for a person's review, which the task's policy asks for: approve some, or "
                "set `train_unreviewed`."
            )
        if chosen.conversations == 1 and pairs > MIN_TRAIN:
            raise NotTrainable(
                f"{found}All {pairs} count as one conversation, because they begin with the same user message, and a "
                "conversation is either trained on or held out. Say which request belongs to which: `metadata.conversation`."
            )
        if chosen.clusters == 1 and pairs > MIN_TRAIN:
            raise NotTrainable(f"{found}All {pairs} are near-duplicates of each other, which are either trained on or held out.")
        if chosen.left_out:
            why, number = Counter(chosen.left_out.values()).most_common(1)[0]
            found += f"{len(chosen.left_out)} of {pairs} pairs are left out, {number} of them because {why}. "
        raise NotTrainable(
            f"{found}Send more traffic through the proxy, or import recorded exchanges with `stillroom import FILE`."
        )
    answers = {text_of(choice.completion) for choice in [*chosen.train, *chosen.holdout]}
    if len(answers) == 1:
        raise NotTrainable(
            f"every one of the {train + holdout} answers is the same, {answers.pop()[:80]!r}: there is nothing to learn and "
            "nothing to judge a student by. Answer it with a rule, or wait for traffic that varies."
        )


def freeze(db: Database, task_id: str, policy: Policy, settings: StoreSettings) -> Dataset:
    """The dataset of the task's pairs as they are now; the existing one if nothing changed. Raises NotTrainable, OSError.

    All that takes time is done outside the transaction that writes, so that nobody waits for it. Call it under the task's lease.
    """
    with db.read() as session:
        chosen = choose(session, task_id, policy)
        check_trainable(chosen)
        files = _rows(session, task_id, chosen)
    content_hash = _digest((name, (row.line() for row in rows)) for name, rows in files.items())
    folder = settings.artifacts / task_id / "datasets" / content_hash[:16]
    for left in folder.parent.glob(".writing-*"):  # by a process that was killed: nobody else writes now
        shutil.rmtree(left, ignore_errors=True)
    if not _is_whole(folder, content_hash):
        _write(folder, files)
    try:
        return _register(db, task_id, chosen, files, content_hash, folder, settings)
    except (IntegrityError, StaleDataError) as error:
        with db.read() as session:
            there = set(session.exec(select(Pair.id).where(Pair.task_id == task_id)))
        if there.issuperset(row.pair_id for rows in files.values() for row in rows):
            raise
        shutil.rmtree(folder)
        raise NotTrainable("some of its pairs were erased while they were frozen; the next turn has the others") from error


def check_whole(dataset: Dataset, settings: StoreSettings) -> None:
    """Raises Damaged unless the dataset's files are what was frozen."""
    folder = settings.home_path / dataset.path
    if not _is_whole(folder, dataset.content_hash):
        raise Damaged(f"the files of dataset {dataset.id} in {folder} are missing or not what was frozen; ask for a new training")


def read(folder: Path, name: str) -> Iterator[Row]:
    """The rows of a frozen dataset's `train`, `validation` or `holdout` file."""
    if name == "validation" and not (folder / f"{name}.jsonl").exists():
        return  # frozen before there was one
    with (folder / f"{name}.jsonl").open("rb") as file:
        for line in file:
            yield Row(**orjson.loads(line))


def _register(
    db: Database,
    task_id: str,
    chosen: Chosen,
    files: dict[str, list[Row]],
    content_hash: str,
    folder: Path,
    settings: StoreSettings,
) -> Dataset:
    """The row of files that are written; the existing one if there is."""
    with db.begin() as session:
        if chosen.news:
            session.execute(update(Pair), [{"id": pair_id, "left_out": why} for pair_id, why in chosen.news.items()])
        known = session.exec(select(Dataset).where(Dataset.task_id == task_id, Dataset.content_hash == content_hash)).first()
        if known is not None:
            return known
        counts = {name: len(rows) for name, rows in files.items()}
        dataset = Dataset(
            task_id=task_id,
            content_hash=content_hash,
            path=str(folder.relative_to(settings.artifacts.parent)),
            train_rows=counts["train"],
            train_pairs=chosen.train_pairs,
            validation_rows=counts["validation"],
            holdout_rows=counts["holdout"],
        )
        session.add(dataset)
        session.flush()
        members = [{"dataset_id": dataset.id, "pair_id": row.pair_id} for rows in files.values() for row in rows]
        session.execute(insert(DatasetPair), members)
        audit.record(session, "distill", "dataset", dataset.id, {**counts, "content_hash": content_hash})
    return dataset


def _is_whole(folder: Path, content_hash: str) -> bool:
    names = FILES if (folder / "validation.jsonl").exists() else FILES_BEFORE
    if not all((folder / f"{name}.jsonl").is_file() for name in names):
        return False
    with ExitStack() as opened:
        return content_hash == _digest((name, opened.enter_context((folder / f"{name}.jsonl").open("rb"))) for name in names)


def _digest(files: Iterable[tuple[str, Iterable[bytes]]]) -> str:
    """The content hash of files, each a name and its lines."""
    digest = hashlib.sha256()
    for name, lines in files:
        digest.update(name.encode())
        for line in lines:
            digest.update(line)
    return digest.hexdigest()


def _write(folder: Path, files: dict[str, list[Row]]) -> None:
    """All files or none: written beside, then renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        for name, rows in files.items():
            with (temporary / f"{name}.jsonl").open("wb") as file:
                file.writelines(row.line() for row in rows)
                file.flush()
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)  # left by a crash, or damaged
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _rows(session: Session, task_id: str, chosen: Chosen) -> dict[str, list[Row]]:
    found = ready(session, task_id, Pair.id, Pair.messages, Pair.tools, Pair.response_format)
    prompts = {prompt.id: prompt for prompt in found}

    def rows(choices: list[Choice]) -> list[Row]:
        chosen = ((prompts[choice.pair_id], choice) for choice in choices)
        return [Row(p.id, p.messages, p.tools, p.response_format, c.completion, c.rejected, c.weight) for p, c in chosen]

    return {name: rows(getattr(chosen, name)) for name in FILES}
