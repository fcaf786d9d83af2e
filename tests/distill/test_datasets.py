"""Freezing pairs into a dataset: same pairs, same hash; people's word counts."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlmodel import select

from distill import datasets, pairs
from distill.settings import DistillSettings
from serving import rollout
from store.policy import Policy
from store.session import Database
from store.states import ReviewKind, Server
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
    return datasets.freeze(db, task, policy, settings)


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
        rows = datasets.select_rows(session, task, Policy(train_unreviewed=False))
    assert (len(rows["train"]), len(rows["holdout"])) == (1, 0)


def test_the_holdout_is_the_latest_rows(db: Database, task: str) -> None:
    with db.read() as session:
        every = datasets.select_rows(session, task, POLICY)["holdout"]
        latest = datasets.select_rows(session, task, Policy(holdout_max=5))["holdout"]
    assert (len(every), latest) == (18, every[-5:])


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


@pytest.mark.parametrize("damage", ["torn", "missing"])
def test_files_that_are_not_what_was_frozen_are_told_and_written_again(
    db: Database, task: str, settings: DistillSettings, damage: str
) -> None:
    dataset = freeze(db, task, settings)
    datasets.check_whole(dataset, settings)
    file = settings.home_path / dataset.path / "train.jsonl"
    file.write_text("torn") if damage == "torn" else file.unlink()
    with pytest.raises(datasets.Damaged, match=f"{dataset.id}.*missing or not what was frozen"):
        datasets.check_whole(dataset, settings)
    assert freeze(db, task, settings).id == dataset.id
    datasets.check_whole(dataset, settings)
    assert len(list(datasets.read(settings.home_path / dataset.path, "train"))) == dataset.train_rows


def test_what_a_killed_writer_left_is_swept_away(db: Database, task: str, settings: DistillSettings) -> None:
    folder = settings.artifacts / task / "datasets"
    for name in ("one", "another"):
        (folder / f".writing-{name}").mkdir(parents=True)
    dataset = freeze(db, task, settings)
    assert list(folder.iterdir()) == [settings.home_path / dataset.path]


def test_a_rollback_is_not_held_up_by_a_freeze(db: Database, task: str, settings: DistillSettings) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def pause(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM pairs" in statement and threading.current_thread() is freezing:
            reading.set()
            assert go_on.wait(20)

    freezing = threading.Thread(target=freeze, args=(db, task, settings))
    event.listen(db.engine, "after_cursor_execute", pause)
    freezing.start()
    try:
        assert reading.wait(20)
        began = time.monotonic()
        with db.begin() as session:
            rollout.rollback(session, task, by="ada", why="it erred")
        assert time.monotonic() - began < 5
        with db.read() as session:
            assert session.exec(select(Dataset)).all() == []
    finally:
        go_on.set()
        freezing.join()
    with db.read() as session:
        assert len(session.exec(select(Dataset)).all()) == 1


def test_rejecting_an_exact_duplicate_takes_out_the_pair_it_duplicates(
    db: Database, put: Callable[..., str], task: str, settings: DistillSettings
) -> None:
    before = freeze(db, task, settings)
    again = exchange("7", "odd")
    put(again)
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 1
        session.add(Review(capture_id=again.id, kind=ReviewKind.REJECT))
    after = freeze(db, task, settings)
    assert before.train_rows + before.holdout_rows - (after.train_rows + after.holdout_rows) == 1


def test_a_corrected_answer_of_the_student_becomes_a_row(
    db: Database, put: Callable[..., str], task: str, settings: DistillSettings
) -> None:
    capture = exchange("1001", "even", served_by=Server.STUDENT)
    put(capture)
    with db.begin() as session:
        correction = {"role": "assistant", "content": "odd, of course"}
        session.add(Review(capture_id=capture.id, kind=ReviewKind.CORRECT, correction=correction))
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 1
    dataset = freeze(db, task, settings)
    rows = [row for name in datasets.FILES for row in datasets.read(settings.home_path / dataset.path, name)]
    assert [row.completion["content"] for row in rows if row.messages[-1]["content"] == "1001"] == ["odd, of course"]


def test_where_reviews_are_missing_the_error_names_them(db: Database, task: str, settings: DistillSettings) -> None:
    with pytest.raises(datasets.NotTrainable, match="60 more wait for a person's review"):
        freeze(db, task, settings, Policy(train_unreviewed=False))


def test_where_everything_is_one_conversation_the_error_says_how_to_tell_them_apart(
    db: Database, put: Callable[..., str], settings: DistillSettings
) -> None:
    opening = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "With what?"}]
    last = [{"role": "user", "content": str(n)} for n in range(40)]
    task_id = put(*(exchange("", f"answer {n}", request={"messages": [*opening, m]}) for n, m in enumerate(last)))
    with db.begin() as session:
        pairs.extract(session, task_id, POLICY)
    with pytest.raises(datasets.NotTrainable, match=r"All 40 count as one conversation.*metadata\.conversation"):
        freeze(db, task_id, settings)


def test_a_tools_schema_keeps_the_order_of_its_keys(db: Database, put: Callable[..., str], settings: DistillSettings) -> None:
    parameters = {"type": "object", "required": ["zone"], "properties": {"zone": {"type": "string"}, "day": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    task_id = put(*(exchange(str(n), str(n % 2), request={"tools": tools}) for n in range(60)))
    with db.begin() as session:
        pairs.extract(session, task_id, POLICY)
    dataset = freeze(db, task_id, settings)
    for row in datasets.read(settings.home_path / dataset.path, "train"):
        assert json.dumps(row.tools) == json.dumps(tools)
