"""Datasets: pairs frozen into two JSONL files whose content hash is the dataset's identity."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlmodel import Session, col, insert, select

from store import audit
from store.answers import text_of
from store.policy import Policy
from store.session import Database
from store.settings import StoreSettings
from store.states import PairStatus, ReviewKind, Split
from store.tables import Dataset, DatasetPair, Message, Pair, Review

MIN_TRAIN = 20
FILES = ("train", "holdout")


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

    def line(self) -> bytes:
        """Keys in the order in which they came: a template that shows a tool's schema shows it in that order."""
        return orjson.dumps(self.__dict__, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True)
class Choice:
    """A pair that a dataset made now would have, without its prompt."""

    pair_id: str
    completion: Message


@dataclass(frozen=True)
class Chosen:
    """What a dataset made now would have."""

    train: list[Choice]
    holdout: list[Choice]
    conversations: int
    unreviewed: int  #: pairs left out because nobody has reviewed them


def choose(session: Session, task_id: str, policy: Policy) -> Chosen:
    """The pairs a dataset made now would have, oldest first, people's reviews applied: their last word on the same content counts.

    Rejected pairs are out, corrections replace the teacher's answer; the holdout is the latest `policy.holdout_max`.
    """
    latest = _latest_reviews(session, task_id)
    train: list[Choice] = []
    holdout: list[Choice] = []
    conversations: set[str] = set()
    unreviewed = 0
    found = _ready(session, task_id, Pair.id, Pair.split, Pair.content_hash, Pair.conversation, Pair.completion)
    for pair_id, split, content_hash, conversation, completion in found:
        review = latest.get(content_hash)
        if review is None and not policy.train_unreviewed:
            unreviewed += 1
            continue
        if review is not None and review.kind == ReviewKind.REJECT:
            continue
        corrected = review.correction if review is not None and review.kind == ReviewKind.CORRECT else None
        (holdout if split == Split.HOLDOUT else train).append(Choice(pair_id, corrected or completion))
        conversations.add(conversation)
    return Chosen(train, holdout[-policy.holdout_max :], len(conversations), unreviewed)


def select_rows(session: Session, task_id: str, policy: Policy) -> tuple[list[Row], list[Row]]:
    """The rows a dataset made now would have: (train, holdout). See `choose`."""
    return _rows(session, task_id, choose(session, task_id, policy))


def check_trainable(chosen: Chosen) -> None:
    """Raises NotTrainable, with what to do, when there is too little or nothing to learn."""
    train, holdout = len(chosen.train), len(chosen.holdout)
    if train < MIN_TRAIN or not holdout:
        found = f"there are {train} pairs to train on and {holdout} held out; at least {MIN_TRAIN} and 1 are needed. "
        if chosen.unreviewed:
            raise NotTrainable(
                f"{found}{chosen.unreviewed} more wait for a person's review, which the task's policy asks for: approve some, or "
                "set `train_unreviewed`."
            )
        if chosen.conversations == 1 and train + holdout > MIN_TRAIN:
            raise NotTrainable(
                f"{found}All {train + holdout} count as one conversation, because they begin with the same user message, and a "
                "conversation is either trained on or held out. Say which request belongs to which: `metadata.conversation`."
            )
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
    """The dataset of the task's pairs as they are now; the existing one if nothing changed. Raises NotTrainable.

    All that takes time is done outside the transaction that writes, so that nobody waits for it.
    """
    with db.read() as session:
        chosen = choose(session, task_id, policy)
        check_trainable(chosen)
        files = dict(zip(FILES, _rows(session, task_id, chosen), strict=True))
    content_hash = _digest((name, (row.line() for row in rows)) for name, rows in files.items())
    folder = settings.artifacts / task_id / "datasets" / content_hash[:16]
    if not _is_whole(folder, content_hash):
        _write(folder, files)
    with db.begin() as session:
        known = session.exec(select(Dataset).where(Dataset.task_id == task_id, Dataset.content_hash == content_hash)).first()
        if known is not None:
            return known
        counts = {name: len(rows) for name, rows in files.items()}
        dataset = Dataset(
            task_id=task_id,
            content_hash=content_hash,
            path=str(folder.relative_to(settings.artifacts.parent)),
            train_rows=counts["train"],
            holdout_rows=counts["holdout"],
        )
        session.add(dataset)
        session.flush()
        members = [{"dataset_id": dataset.id, "pair_id": row.pair_id} for rows in files.values() for row in rows]
        session.execute(insert(DatasetPair), members)
        audit.record(session, "distill", "dataset", dataset.id, {**counts, "content_hash": content_hash})
    return dataset


def check_whole(dataset: Dataset, settings: StoreSettings) -> None:
    """Raises Damaged unless the dataset's files are what was frozen."""
    folder = settings.home_path / dataset.path
    if not _is_whole(folder, dataset.content_hash):
        raise Damaged(f"the files of dataset {dataset.id} in {folder} are missing or not what was frozen; ask for a new training")


def read(folder: Path, name: str) -> Iterator[Row]:
    """The rows of a frozen dataset's `train` or `holdout` file."""
    with (folder / f"{name}.jsonl").open("rb") as file:
        for line in file:
            yield Row(**orjson.loads(line))


def _is_whole(folder: Path, content_hash: str) -> bool:
    if not all((folder / f"{name}.jsonl").is_file() for name in FILES):
        return False
    with ExitStack() as opened:
        return content_hash == _digest((name, opened.enter_context((folder / f"{name}.jsonl").open("rb"))) for name in FILES)


def _digest(files: Iterable[tuple[str, Iterable[bytes]]]) -> str:
    """The content hash of files, each a name and its lines."""
    digest = hashlib.sha256()
    for name, lines in files:
        digest.update(name.encode())
        for line in lines:
            digest.update(line)
    return digest.hexdigest()


def _write(folder: Path, files: dict[str, list[Row]]) -> None:
    """All files or none: written beside, then renamed. Sweeps away what writers left that were killed more than an hour ago."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(".writing-*"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    for name, rows in files.items():
        with (temporary / f"{name}.jsonl").open("wb") as file:
            file.writelines(row.line() for row in rows)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)  # left by a crash, or damaged
    temporary.rename(folder)


def _ready(session: Session, task_id: str, *columns: Any) -> Iterable[Any]:
    """These columns of the task's pairs that are fit to learn from, oldest first."""
    ready = sa.select(*columns).where(col(Pair.task_id) == task_id, col(Pair.status) == PairStatus.READY)
    return session.execute(ready.order_by(col(Pair.capture_id)))


def _rows(session: Session, task_id: str, chosen: Chosen) -> tuple[list[Row], list[Row]]:
    found = _ready(session, task_id, Pair.id, Pair.messages, Pair.tools, Pair.response_format)
    prompts = {prompt.id: prompt for prompt in found}

    def rows(choices: list[Choice]) -> list[Row]:
        chosen = ((prompts[choice.pair_id], choice.completion) for choice in choices)
        return [Row(p.id, p.messages, p.tools, p.response_format, completion) for p, completion in chosen]

    return rows(chosen.train), rows(chosen.holdout)


def _latest_reviews(session: Session, task_id: str) -> dict[str, Review]:
    """By a pair's content: the last review that says something of its worth, be it of a duplicate."""
    reviews = session.exec(
        select(Pair.content_hash, Review)
        .join(Review, col(Pair.capture_id) == col(Review.capture_id))
        .where(Pair.task_id == task_id, Review.kind != ReviewKind.TAG)
        .order_by(col(Review.created_at), col(Review.id))
    )
    return dict(reviews.all())
