"""Datasets: pairs frozen into two JSONL files whose content hash is the dataset's identity."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlmodel import Session, col, select

from store import audit
from store.answers import text_of
from store.policy import Policy
from store.settings import StoreSettings
from store.states import PairStatus, ReviewKind, Split
from store.tables import Dataset, DatasetPair, Message, Pair, Review

MIN_TRAIN = 20


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


def select_rows(session: Session, task_id: str, policy: Policy) -> tuple[list[Row], list[Row]]:
    """The rows a dataset made now would have: (train, holdout), oldest first, people's reviews applied.

    Rejected pairs are out, corrections replace the teacher's answer; the holdout is the latest `policy.holdout_max`.
    """
    latest = _latest_reviews(session, task_id)
    ready = select(Pair).where(Pair.task_id == task_id, Pair.status == PairStatus.READY).order_by(col(Pair.capture_id))
    train: list[Row] = []
    holdout: list[Row] = []
    for pair in session.exec(ready):
        review = latest.get(pair.capture_id)
        if review is None and not policy.train_unreviewed:
            continue
        if review is not None and review.kind == ReviewKind.REJECT:
            continue
        corrected = review.correction if review is not None and review.kind == ReviewKind.CORRECT else None
        row = Row(pair.id, pair.messages, pair.tools, pair.response_format, corrected or pair.completion)
        (holdout if pair.split == Split.HOLDOUT else train).append(row)
    return train, holdout[-policy.holdout_max :]


def check_trainable(train: list[Row], holdout: list[Row]) -> None:
    """Raises NotTrainable, with what to do, when there is too little or nothing to learn."""
    if len(train) < MIN_TRAIN or not holdout:
        raise NotTrainable(
            f"there are {len(train)} pairs to train on and {len(holdout)} held out; at least {MIN_TRAIN} and 1 are needed. "
            "Send more traffic through the proxy, or import recorded exchanges with `stillroom import FILE`."
        )
    if len({text_of(row.completion) for row in [*train, *holdout]}) == 1:
        raise NotTrainable(
            f"every one of the {len(train) + len(holdout)} answers is the same, {text_of(train[0].completion)[:80]!r}: there is "
            "nothing to learn and nothing to judge a student by. Answer it with a rule, or wait for traffic that varies."
        )


def freeze(session: Session, task_id: str, policy: Policy, settings: StoreSettings) -> Dataset:
    """The dataset of the task's pairs as they are now; the existing one if nothing changed. Raises NotTrainable."""
    train, holdout = select_rows(session, task_id, policy)
    check_trainable(train, holdout)
    digest = hashlib.sha256()
    for name, rows in (("train", train), ("holdout", holdout)):
        digest.update(name.encode())
        for row in rows:
            digest.update(row.line())
    content_hash = digest.hexdigest()
    known = session.exec(select(Dataset).where(Dataset.task_id == task_id, Dataset.content_hash == content_hash)).first()
    if known is not None:
        return known
    folder = settings.artifacts / task_id / "datasets" / content_hash[:16]
    _write(folder, {"train": train, "holdout": holdout})
    dataset = Dataset(
        task_id=task_id,
        content_hash=content_hash,
        path=str(folder.relative_to(settings.artifacts.parent)),
        train_rows=len(train),
        holdout_rows=len(holdout),
    )
    session.add(dataset)
    session.flush()
    session.add_all(DatasetPair(dataset_id=dataset.id, pair_id=row.pair_id) for row in [*train, *holdout])
    counts = {"train": len(train), "holdout": len(holdout), "content_hash": content_hash}
    audit.record(session, "distill", "dataset", dataset.id, counts)
    return dataset


def read(folder: Path, name: str) -> Iterator[Row]:
    """The rows of a frozen dataset's `train` or `holdout` file."""
    with (folder / f"{name}.jsonl").open("rb") as file:
        for line in file:
            yield Row(**orjson.loads(line))


def _write(folder: Path, files: dict[str, list[Row]]) -> None:
    """All files or none: written beside, then renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    for name, rows in files.items():
        with (temporary / f"{name}.jsonl").open("wb") as file:
            file.writelines(row.line() for row in rows)
    shutil.rmtree(folder, ignore_errors=True)  # left by a crash between the rename and the commit: same content
    temporary.rename(folder)


def _latest_reviews(session: Session, task_id: str) -> dict[str, Review]:
    """By capture: the last review that says something of the answer's worth."""
    reviews = session.exec(
        select(Review)
        .join(Pair, col(Pair.capture_id) == col(Review.capture_id))
        .where(Pair.task_id == task_id, Review.kind != ReviewKind.TAG)
        .order_by(col(Review.created_at), col(Review.id))
    )
    return {review.capture_id: review for review in reviews}
