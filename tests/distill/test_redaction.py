"""What is replaced in the stored copy of a pair, and what is not."""

from collections import Counter
from collections.abc import Callable

import orjson
import pytest
from sqlmodel import select

from distill import datasets, evaluate, pairs, redaction
from distill.redaction import ORDER
from store.policy import Policy
from store.session import Database
from store.states import PairStatus, ReviewKind
from store.tables import Capture, Pair, Review
from tests import pii
from tests.distill.conftest import exchange

MAIL = "anna.lopez@acme.io"


def test_at_least_98_of_100_are_found_and_95_of_100_that_are_found_are_right() -> None:
    there, found, right = Counter[str](), Counter[str](), Counter[str]()
    for labelled in pii.corpus(150, seed=7):
        spans = redaction.find(labelled.text, ORDER)
        for start, end, kind in labelled.spans:
            there[kind] += 1
            found[kind] += any(a <= start and end <= b for a, b, _ in spans)
        right[True] += sum(any(a < end and start < b for start, end, _ in labelled.spans) for a, b, _ in spans)
        right[False] += sum(not any(a < end and start < b for start, end, _ in labelled.spans) for a, b, _ in spans)
    assert set(there) == set(ORDER)
    assert [kind for kind in ORDER if found[kind] < 0.98 * there[kind]] == []
    assert right[False] <= 0.05 * right[True]


def redacted(messages: list[dict[str, object]], answer: str, kinds: tuple[str, ...] = ORDER) -> Pair:
    pair = Pair(task_id="t", capture_id="c", status=PairStatus.READY, messages=messages)
    pair.completion = {"role": "assistant", "content": answer}
    redaction.redact(pair, kinds)  # type: ignore[arg-type]
    return pair


def test_the_same_value_becomes_the_same_one_in_prompt_answer_parts_and_tool_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "mail", "arguments": orjson.dumps({"to": MAIL}).decode()}}
    messages: list[dict[str, object]] = [
        {"role": "user", "content": [{"type": "text", "text": f"Write to {MAIL}, not to ben@acme.io"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sent", "tool_call_id": "1"},
    ]
    pair = redacted(messages, f"I wrote to {MAIL.upper()}.")
    assert pair.messages[0]["content"] == [{"type": "text", "text": "Write to person1@example.com, not to person2@example.com"}]
    arguments = pair.messages[1]["tool_calls"][0]["function"]["arguments"]
    assert orjson.loads(arguments) == {"to": "person1@example.com"}
    assert (pair.completion["content"], pair.redacted) == ("I wrote to person1@example.com.", 2)


def test_what_takes_its_place_has_its_form() -> None:
    said = "a@b.de, card 4111 1111 1111 1111, IBAN DE89370400440532013000, host 8.8.8.8, SSN 536-90-4399"
    pair = redacted([{"role": "user", "content": said}], "ok")
    text = str(pair.messages[0]["content"])
    kinds = [kind for _, _, kind in redaction.find(text, ORDER)]
    assert kinds == ["email", "card", "iban", "ip"]  # with their check digits; no SSN begins with 000
    assert not any(part in text for part in ("a@b.de", "4111", "DE89", "8.8.8.8", "536-90"))


def test_only_the_kinds_that_the_policy_names_are_replaced() -> None:
    pair = redacted([{"role": "user", "content": f"{MAIL} at 8.8.8.8"}], "ok", ("ip",))
    assert pair.messages[0]["content"] == f"{MAIL} at 192.0.2.1"
    assert redacted([{"role": "user", "content": MAIL}], "ok", ()).messages[0]["content"] == MAIL


def test_digits_in_a_row_are_a_telephone_number_only_if_something_says_so() -> None:
    assert redaction.find("order 2125550143", ("phone",)) == []
    assert [(a, b) for a, b, _ in redaction.find("call 2125550143", ("phone",))] == [(5, 15)]


def test_a_task_that_redacts_stores_and_learns_no_address_that_its_captures_have(db: Database, put: Callable[..., str]) -> None:
    policy = Policy(redact=["email"])
    rows = [exchange(f"{n}: is {MAIL} a customer?", f"yes, {MAIL} is") for n in range(60)]
    left_out = exchange(f"{MAIL}?", "cut", finish_reason="length")
    task = put(*rows, left_out)
    with db.begin() as session:
        while pairs.extract(session, task, policy):
            pass
        found = session.exec(select(Pair)).all()
        correction = {"role": "assistant", "content": f"no, {MAIL} is none"}
        session.add(Review(capture_id=rows[0].id, kind=ReviewKind.CORRECT, correction=correction))
    assert len(found) == 61
    assert not any(MAIL in orjson.dumps([pair.messages, pair.completion]).decode() for pair in found)
    with db.read() as session:
        chosen = datasets.select_rows(session, task, policy)
        texts = [row.completion["content"] for side in chosen.values() for row in side]
        assert session.get_one(Capture, rows[0].id).request.count(MAIL.encode()) == 1
        held_out = chosen["holdout"][0]
        pair = session.get_one(Pair, held_out.pair_id)
        question = evaluate._question(held_out, session.get_one(Capture, pair.capture_id), redacted=pair.redacted > 0)
    assert MAIL not in orjson.dumps(question.request).decode()
    assert question.request["messages"] == held_out.messages
    assert set(texts) == {"yes, person1@example.com is", "no, person1@example.com is none"}


@pytest.mark.parametrize("kind", ORDER)
def test_what_stands_in_is_another_for_another_value(kind: str) -> None:
    made = [redaction._invent(kind, number) for number in range(1, 100)]  # type: ignore[arg-type]
    assert len(set(made)) == 99
