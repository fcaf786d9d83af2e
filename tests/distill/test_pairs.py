"""Which captures become pairs, and on which side of the split."""

from collections.abc import Callable

import orjson
import pytest
from sqlmodel import select

from distill import pairs
from store.policy import Policy
from store.session import Database
from store.states import CaptureStatus, PairStatus, Server, Split
from store.tables import Capture, Pair
from tests.distill.conftest import exchange

POLICY = Policy()


def test_a_complete_answer_of_the_teacher_is_a_pair() -> None:
    pair = pairs.judge(exchange("4", "even"), POLICY)
    assert (pair.status, pair.completion) == (PairStatus.READY, {"role": "assistant", "content": "even"})
    assert [m["role"] for m in pair.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        (exchange("4", "eve", finish_reason="length"), "did not finish: length"),
        (exchange("4", "", finish_reason="content_filter"), "did not finish: content_filter"),
        (exchange("4", None, message={"refusal": "I will not say."}), "refused"),
        (exchange("4", ""), "empty"),
        (exchange("4", "even", http_status=429), "answered 429"),
        (exchange("4", "even", response=b'{"error": {"message": "no"}}'), "error"),
        (exchange("4", "even", response=b"<html>"), "error"),
        (exchange("4", "even", stream=True, response=b'data: {"choices":[{"delta":{"content":"ev"}}]}\n\n'), "ended early"),
        (exchange("4", "even", request={"n": 2}), "more than one"),
        (exchange("4", "even", request={"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "not text"),
        (exchange("4", "even", request={"messages": []}), "no messages"),
        (exchange("4", "even", request={}, **{"response": b"[]"}), "error"),
    ],
)
def test_what_is_not_fit_is_left_out_with_its_reason(capture: Capture, reason: str) -> None:
    pair = pairs.judge(capture, POLICY)
    assert pair.status == PairStatus.EXCLUDED
    assert reason in pair.reason
    assert pair.split is None


def test_a_streamed_answer_makes_the_same_pair_as_a_whole_one() -> None:
    events = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": "ev"}}]}]
    events += [{"choices": [{"index": 0, "delta": {"content": "en"}, "finish_reason": "stop"}]}]
    body = b"".join(b"data: " + orjson.dumps(e) + b"\n\n" for e in events) + b"data: [DONE]\n\n"
    streamed, whole = (pairs.judge(c, POLICY) for c in (exchange("4", "", stream=True, response=body), exchange("4", "even")))
    assert streamed.content_hash == whole.content_hash


def test_exact_duplicates_count_once_and_nothing_is_looked_at_twice(db: Database, put: Callable[..., str]) -> None:
    task = put(exchange("4", "even"), exchange("4", "even"), exchange("5", "odd"))
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 3
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 0
        found = session.exec(select(Pair)).all()
    assert sorted(p.status for p in found) == [PairStatus.EXCLUDED, PairStatus.READY, PairStatus.READY]
    assert [p.reason for p in found if p.status == PairStatus.EXCLUDED] == ["exact duplicate of an earlier pair"]


def test_answers_of_the_student_and_unfinished_ones_are_never_looked_at(db: Database, put: Callable[..., str]) -> None:
    task = put(exchange("4", "even", served_by=Server.STUDENT), exchange("5", "odd", status=CaptureStatus.INCOMPLETE))
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 0


def test_turns_of_one_conversation_fall_on_one_side() -> None:
    turns = []
    for number in range(400):
        first = [{"role": "user", "content": f"Conversation {number}"}]
        longer = [*first, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "More."}]
        turns.append([pairs.judge(exchange("", "ok", request={"messages": m}), POLICY).split for m in (first, longer)])
    assert all(a == b for a, b in turns)
    held = sum(a == Split.HOLDOUT for a, _ in turns)
    assert 50 < held < 110  # 20 % of 400


def test_a_named_conversation_wins() -> None:
    one, two = (pairs.judge(exchange(p, "ok", meta={"conversation": "c-1"}), POLICY) for p in ("a", "b"))
    assert one.conversation == two.conversation
