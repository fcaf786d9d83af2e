"""When two answers say the same, by the kind of output."""

import json
from typing import Any

import pytest

from distill.agreement import Kind, agree, detect


def said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content if isinstance(content, str) else json.dumps(content)}


def called(*calls: tuple[str, Any]) -> dict[str, Any]:
    functions = [{"name": n, "arguments": a if isinstance(a, str) else json.dumps(a)} for n, a in calls]
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": f} for f in functions]}


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([said("E1"), said("E2")] * 10, Kind.LABEL),
        ([said({"a": 1}), said({"a": 2})], Kind.JSON),
        ([said("Hello"), called(("f", {}))], Kind.TOOLS),
        ([said(f"A sentence that is never said again, number {i}.") for i in range(20)], Kind.TEXT),
        ([said("x" * 200)] * 20, Kind.TEXT),
    ],
)
def test_the_kind_is_seen_from_the_answers(answers: list[dict[str, Any]], kind: Kind) -> None:
    assert detect(answers, [None] * len(answers)) is kind


def test_a_request_for_json_makes_it_json() -> None:
    assert detect([said("oops")], [{"type": "json_object"}]) is Kind.JSON


@pytest.mark.parametrize(
    ("x", "t", "same"),
    [
        ("E1", " e1\n", True),
        ("E1.", "E1", False),
        ("", "E1", False),
        ("Äpfel", "A\u0308pfel", True),
    ],
)
def test_labels(x: str, t: str, same: bool) -> None:
    assert agree(Kind.LABEL, said(x), said(t)) is same


@pytest.mark.parametrize(
    ("x", "t", "same"),
    [
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1}, True),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": 15}, {"a": 1.5}, False),
        ({"a": "1.5"}, {"a": "15"}, False),
        ({"a": None}, {}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": {"id": "A-1234", "rest": "same " * 50}}, {"a": {"id": "A-1235", "rest": "same " * 50}}, False),
        ({}, {"a": 1}, False),
    ],
)
def test_json(x: Any, t: Any, same: bool) -> None:
    assert agree(Kind.JSON, said(x), said(t)) is same


def test_numbers_beyond_every_float_are_compared_all_the_same() -> None:
    huge = int("9" * 309)
    assert agree(Kind.JSON, said({"a": huge}), said({"a": huge}))
    assert not agree(Kind.JSON, said({"a": huge}), said({"a": 1.5}))


def test_an_answer_nested_without_end_agrees_with_nothing() -> None:
    assert not agree(Kind.JSON, said("[" * 100_000), said([1]))
    assert not agree(Kind.JSON, said("[" * 900 + "]" * 900), said([1]))
    assert detect([said("[" * 100_000), said("[1]")], [None] * 2) is not Kind.JSON


@pytest.mark.parametrize("calls", [7, [7], [{"function": 7}], [{"function": {"name": "f", "arguments": {"a": 1}}}]])
def test_tool_calls_of_odd_shapes_do_not_end_an_evaluation(calls: Any) -> None:
    odd = {"role": "assistant", "content": None, "tool_calls": calls}
    assert not agree(Kind.TOOLS, odd, called(("f", {"a": 2})))


def test_what_is_no_json_agrees_with_no_json() -> None:
    assert not agree(Kind.JSON, said('{"a": 1'), said({"a": 1}))
    assert not agree(Kind.JSON, None, said({"a": 1}))


@pytest.mark.parametrize(
    ("x", "t", "same"),
    [
        (called(("f", {"a": 1, "b": 2})), called(("f", '{"b": 2, "a": 1}')), True),
        (called(("f", {}), ("g", {})), called(("g", {}), ("f", {})), True),
        (called(("f", {"a": 1, "extra": 1})), called(("f", {"a": 1})), False),
        (called(("f", {"a": "1"})), called(("f", {"a": 1})), False),
        (called(("f", {"a": 1.0})), called(("f", {"a": 1})), True),
        (called(("f", {"a": 1}), ("f", {"a": 1})), called(("f", {"a": 1})), False),
        (called(("f", "{broken")), called(("f", {})), False),
        (said("Done."), called(("f", {})), False),
        (called(("f", {})), said("Done."), False),
        (said("done. "), said("Done."), True),
    ],
)
def test_tool_calls(x: dict[str, Any], t: dict[str, Any], same: bool) -> None:
    assert agree(Kind.TOOLS, x, t) is same
