"""Finding pairs, and one with both answers; on SQLite and on PostgreSQL."""

import pytest

from admin import pairs, reviews
from admin.pairs import Filter
from admin.problems import NotFound
from store.session import Database
from store.states import PairStatus, ReviewKind, Split
from tests.admin import rows


def prompts(db: Database, wanted: Filter) -> list[str]:
    with db.read() as session:
        return sorted(line.prompt for line in pairs.listing(session, wanted).data)


def test_pairs_are_filtered_and_searched(db: Database) -> None:
    with db.begin() as session:
        train, holdout, excluded = (rows.capture(session, name) for name in ("train", "holdout", "excluded"))
        rows.pair(session, train)
        rows.pair(session, holdout, Split.HOLDOUT)
        rows.pair(session, excluded, None, reason="the answer is empty")
        reviews.approve(session, train.id, by="me")
        reviews.tag(session, holdout.id, ["odd one"], by="me")
    assert prompts(db, Filter(split=Split.HOLDOUT)) == ["holdout"]
    assert prompts(db, Filter(status=PairStatus.EXCLUDED)) == ["excluded"]
    assert prompts(db, Filter(task_id=train.task_id)) == ["excluded", "holdout", "train"]
    assert prompts(db, Filter(task_id="task_other")) == []
    assert prompts(db, Filter(q="TRAIN")) == ["train"]
    assert prompts(db, Filter(review="approve")) == ["train"]
    assert prompts(db, Filter(review="none")) == ["excluded", "holdout"]
    assert prompts(db, Filter(tag="odd one")) == ["holdout"]


def test_pairs_come_page_by_page(db: Database) -> None:
    with db.begin() as session:
        rows.numbers(session, 0, 5)
    with db.read() as session:
        first = pairs.listing(session, Filter(), limit=3)
        second = pairs.listing(session, Filter(), after=first.data[-1].id, limit=3)
    assert first.has_more
    assert not second.has_more
    assert len({line.id for line in [*first.data, *second.data]}) == 5


def test_a_corrected_pair_shows_what_is_learned(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "3?", "even")
        pair = rows.pair(session, capture)
        reviews.correct(session, pair.id, "odd", by="me")
    with db.read() as session:
        one = pairs.one(session, pair.id)
    assert (one.answer, one.review) == ("odd", ReviewKind.CORRECT)
    assert one.correction == {"role": "assistant", "content": "odd"}
    assert one.completion == {"role": "assistant", "content": "even"}
    assert one.capture.id == capture.id
    assert len(one.reviews) == 1


def test_one_pair_has_the_teachers_and_the_students_answer(db: Database) -> None:
    with db.begin() as session:
        adapter = rows.trained(session, rows.numbers(session, 0, 8))
    with db.read() as session:
        [line] = pairs.listing(session, Filter(q="4?")).data
        one = pairs.one(session, line.id)
    assert one.teacher is not None
    assert one.student is not None
    assert one.student.adapter_id == adapter.id
    assert (one.teacher.message or {})["content"] == "even"
    assert (one.student.message or {})["content"] == "odd"


def test_an_unknown_pair_is_told(db: Database) -> None:
    with db.read() as session, pytest.raises(NotFound, match="stillroom pairs"):
        pairs.one(session, "pair_nothing")
