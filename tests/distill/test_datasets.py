"""Freezing pairs into a dataset: same pairs, same hash; people's word counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import select

from distill import datasets, pairs
from distill.settings import DistillSettings
from store.policy import Policy
from store.session import Database
from store.states import ReviewKind
from store.tables import Dataset, DatasetPair, Pair, Review
from tests.distill.conftest import exchange

POLICY = Policy(holdout=0.3)


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    return DistillSettings(home=tmp_path)


@pytest.fixture
def task(db: Database, put: Callable[..., str]) -> str:
    task_id = put(*(exchange(str(n), "even" if n % 2 == 0 else "odd") for n in range(60)))
    with db.begin() as session:
        pairs.extract(session, task_id, POLICY)
    return task_id


def freeze(db: Database, task: str, settings: DistillSettings, policy: Policy = POLICY) -> Dataset:
    with db.begin() as session:
        return datasets.freeze(session, task, policy, settings)


def review(db: Database, pair: Pair, kind: ReviewKind, answer: str | None = None) -> None:
    correction = {"role": "assistant", "content": answer} if answer is not None else None
    with db.begin() as session:
        session.add(Review(capture_id=pair.capture_id, kind=kind, correction=correction))


def some_train_pair(db: Database) -> Pair:
    with db.read() as session:
        return session.exec(select(Pair).where(Pair.split == "train")).first()  # type: ignore[return-value]


def test_freezing_twice_gives_one_dataset(db: Database, task: str, settings: DistillSettings) -> None:
    first, second = freeze(db, task, settings), freeze(db, task, settings)
    assert first.id == second.id
    assert first.train_rows + first.holdout_rows == 60
    with db.read() as session:
        assert len(session.exec(select(DatasetPair)).all()) == 60


def test_train_and_holdout_share_no_pair_and_the_file_says_what_the_row_says(
    db: Database, task: str, settings: DistillSettings
) -> None:
    dataset = freeze(db, task, settings)
    train, holdout = (
        {row.pair_id for row in datasets.read(settings.home_path / dataset.path, name)} for name in ("train", "holdout")
    )
    assert (len(train), len(holdout)) == (dataset.train_rows, dataset.holdout_rows)
    assert not train & holdout


def test_a_rejected_pair_is_out_and_a_corrected_one_says_what_the_person_said(
    db: Database, task: str, settings: DistillSettings
) -> None:
    before = freeze(db, task, settings)
    pair = some_train_pair(db)
    review(db, pair, ReviewKind.CORRECT, "neither")
    corrected = freeze(db, task, settings)
    assert corrected.content_hash != before.content_hash
    rows = {row.pair_id: row for row in datasets.read(settings.home_path / corrected.path, "train")}
    assert rows[pair.id].completion["content"] == "neither"
    review(db, pair, ReviewKind.REJECT)
    assert freeze(db, task, settings).train_rows == before.train_rows - 1
    review(db, pair, ReviewKind.APPROVE)  # the last word counts
    assert freeze(db, task, settings).id == before.id


def test_a_tag_changes_nothing(db: Database, task: str, settings: DistillSettings) -> None:
    before = freeze(db, task, settings)
    review(db, some_train_pair(db), ReviewKind.TAG)
    assert freeze(db, task, settings).id == before.id


def test_where_review_is_required_only_reviewed_pairs_count(db: Database, task: str, settings: DistillSettings) -> None:
    review(db, some_train_pair(db), ReviewKind.APPROVE)
    with db.read() as session:
        train, holdout = datasets.select_rows(session, task, Policy(train_unreviewed=False))
    assert (len(train), len(holdout)) == (1, 0)


def test_the_holdout_is_the_latest_rows(db: Database, task: str) -> None:
    with db.read() as session:
        _, every = datasets.select_rows(session, task, POLICY)
        _, latest = datasets.select_rows(session, task, Policy(holdout_max=5))
    assert latest == every[-5:]


def test_three_pairs_are_too_few_and_the_error_says_what_to_do(
    db: Database, put: Callable[..., str], settings: DistillSettings
) -> None:
    task = put(*(exchange(str(n), "x" * n) for n in range(1, 4)))
    with db.begin() as session:
        pairs.extract(session, task, POLICY)
    with pytest.raises(datasets.NotTrainable, match=r"(?s)at least 20 .*stillroom import"):
        freeze(db, task, settings)


def test_one_label_for_everything_is_nothing_to_learn(db: Database, put: Callable[..., str], settings: DistillSettings) -> None:
    task = put(*(exchange(str(n), "E1") for n in range(60)))
    with db.begin() as session:
        pairs.extract(session, task, POLICY)
    with pytest.raises(datasets.NotTrainable, match=r"'E1'.*with a rule"):
        freeze(db, task, settings)


def test_a_folder_left_by_a_crash_is_written_again(db: Database, task: str, settings: DistillSettings) -> None:
    with db.begin() as session:
        dataset = datasets.freeze(session, task, POLICY, settings)
        (settings.home_path / dataset.path / "train.jsonl").write_text("torn")
        session.rollback()
    dataset = freeze(db, task, settings)
    assert len(list(datasets.read(settings.home_path / dataset.path, "train"))) == dataset.train_rows


def test_a_tools_schema_keeps_the_order_of_its_keys(db: Database, put: Callable[..., str], settings: DistillSettings) -> None:
    parameters = {"type": "object", "required": ["zone"], "properties": {"zone": {"type": "string"}, "day": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    task_id = put(*(exchange(str(n), str(n % 2), request={"tools": tools}) for n in range(60)))
    with db.begin() as session:
        pairs.extract(session, task_id, POLICY)
    dataset = freeze(db, task_id, settings)
    for row in datasets.read(settings.home_path / dataset.path, "train"):
        assert json.dumps(row.tools) == json.dumps(tools)
