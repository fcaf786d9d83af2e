"""What people may say of a capture, and what a correction must be."""

from typing import Any

import pytest
from sqlmodel import Session

from admin import reviews
from admin.problems import Invalid, NotFound
from store.chat import RESPONSES
from store.session import Database
from store.states import ReviewKind
from tests.admin import rows

FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
TOOLS = {"tools": [FIND]}


def standing(session: Session, capture_id: str) -> reviews.Standing:
    return reviews.standings(session, [capture_id])[capture_id]


def test_reviews_are_history_and_the_last_judgement_counts(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "3?", "even")
        reviews.approve(session, capture.id, by="ann")
        reviews.correct(session, capture.id, "odd", by="bob", note="3 is odd")
        reviews.tag(session, capture.id, ["typical"], by="ann")
        reviews.tag(session, capture.id, ["typical", "short"], by="ann")
    with db.read() as session:
        history = reviews.history(session, capture.id)
        found = standing(session, capture.id)
    assert [(review.kind.value, review.reviewer) for review in history] == [
        ("approve", "ann"), ("correct", "bob"), ("tag", "ann"), ("tag", "ann"),
    ]  # fmt: skip
    assert found == reviews.Standing(ReviewKind.CORRECT, {"role": "assistant", "content": "odd"}, ["typical", "short"])


def test_a_later_approval_takes_a_correction_back(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "3?", "even")
        reviews.correct(session, capture.id, "odd", by="me")
        reviews.approve(session, capture.id, by="me")
        assert standing(session, capture.id) == reviews.Standing(ReviewKind.APPROVE, None, [])


def test_distill_learns_what_people_said(db: Database) -> None:
    from distill import datasets
    from store.policy import Policy

    with db.begin() as session:
        wrong, right, bad = (rows.capture(session, name, name) for name in ("wrong", "right", "bad"))
        pairs = {name: rows.pair(session, capture) for name, capture in (("wrong", wrong), ("right", right), ("bad", bad))}
        reviews.correct(session, pairs["wrong"].id, "corrected", by="me")
        reviews.reject(session, bad.id, by="me")
        found = datasets.select_rows(session, wrong.task_id, Policy())
    assert sorted(row.completion["content"] for row in found["train"]) == ["corrected", "right"]


def test_a_correction_fits_the_request_as_its_endpoint_says_it(db: Database) -> None:
    asked = {"tools": [{"type": "function", "name": "find"}], "text": {"format": {"type": "json_object"}}}
    call = {"function": {"name": "find", "arguments": "{}"}}
    with db.begin() as session:
        capture = rows.capture(session, "3?", "even", request=asked, endpoint=RESPONSES)
        review = reviews.correct(session, capture.id, {"tool_calls": [call]}, by="me")
        assert review.correction is not None
        assert review.correction["tool_calls"][0]["function"]["name"] == "find"
        with pytest.raises(Invalid, match="json_object"):
            reviews.correct(session, capture.id, "odd", by="me")


def test_an_unknown_target_is_told(db: Database) -> None:
    with db.begin() as session:
        for target in ("cap_nothing", "pair_nothing", ""):
            with pytest.raises(NotFound, match="stillroom captures"):
                reviews.approve(session, target, by="me")


@pytest.mark.parametrize(
    ("answer", "request_", "reason"),
    [
        ("", {}, "it is empty"),
        ("  \n", {}, "it is empty"),
        ({"role": "user", "content": "x"}, {}, "its role is 'user'"),
        ({"role": "assistant", "content": None}, {}, "it is empty"),
        ({"role": "assistant", "content": ["x"]}, {}, "its content is not text"),
        ({"content": "x", "refusal": "no"}, {}, "it has refusal"),
        ({"tool_calls": {"name": "find"}}, TOOLS, "are not a list"),
        ({"tool_calls": ["find"]}, TOOLS, "a tool call is"),
        ({"tool_calls": [{"function": {"name": "find", "arguments": "{"}}]}, TOOLS, "no JSON object"),
        ({"tool_calls": [{"function": {"name": "find", "arguments": "[]"}}]}, TOOLS, "no JSON object"),
        ({"tool_calls": [{"function": {"name": "fond", "arguments": "{}"}}]}, TOOLS, "the request offers find"),
        ({"tool_calls": [{"function": {"name": "find", "arguments": "{}"}}]}, {}, "the request offers no tools"),
        ({"tool_calls": [{"function": {"name": "find", "arguments": "{}"}}]}, {"tools": "x"}, "the request offers no tools"),
        ("odd", {"response_format": {"type": "json_object"}}, "no JSON object"),
        ("[1]", {"response_format": {"type": "json_schema"}}, "no JSON object"),
    ],
)
def test_a_correction_no_student_could_learn_is_refused_with_the_reason(answer: Any, request_: dict[str, Any], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        reviews.usable(answer, request_)


@pytest.mark.parametrize(
    ("answer", "request_", "message"),
    [
        ("odd", {}, {"role": "assistant", "content": "odd"}),
        ({"content": "odd", "refusal": None}, {}, {"role": "assistant", "content": "odd"}),
        ('{"a": 1}', {"response_format": {"type": "json_object"}}, {"role": "assistant", "content": '{"a": 1}'}),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"n": 1}}}],
            },
            TOOLS,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"n":1}'}}],
            },
        ),
    ],
)
def test_a_usable_correction_becomes_an_assistant_message(answer: Any, request_: dict[str, Any], message: dict[str, Any]) -> None:
    assert reviews.usable(answer, request_) == message


@pytest.mark.parametrize("tags", [[], [""], ["a" * 51], ["a\nb"]])
def test_a_bad_tag_is_refused(db: Database, tags: list[str]) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "3?")
        with pytest.raises(Invalid, match="1 to 50 printable"):
            reviews.tag(session, capture.id, tags, by="me")
