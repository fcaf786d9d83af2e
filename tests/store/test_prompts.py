"""What the student is shown of a request."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import prompts
from store.chat import CHAT, RESPONSES, TEXT
from store.prompts import BadTransform, Piece, Transform, UnseenTemplate, apply, beyond, for_student, read


def test_no_longer_answer_is_asked_for_than_the_engine_has_room_for() -> None:
    request = {"messages": [], "max_tokens": 100_000, "max_completion_tokens": 20}
    assert for_student(request, "a@v1", 4096)["max_tokens"] == 4096
    assert for_student(request, "a@v1", 4096)["max_completion_tokens"] == 20
    assert for_student(request, "a@v1")["max_tokens"] == 100_000
    assert "max_tokens" not in for_student({"messages": []}, "a@v1", 4096)
    assert for_student({"messages": [], "max_tokens": None}, "a@v1", 4096)["max_tokens"] is None


def test_what_a_teacher_thought_in_earlier_turns_is_not_shown() -> None:
    said = {"role": "assistant", "content": "even"}
    request = {"messages": [{**said, "reasoning": "4 = 2 + 2", "reasoning_content": "4 = 2 + 2"}, "odd shape"]}
    assert for_student(request, "a@v1")["messages"] == [said, "odd shape"]


def test_a_text_completion_is_put_to_the_student_in_chat() -> None:
    request = {"model": "big", "prompt": "4", "max_tokens": 9_000, "stop": ".", "stream": True, "temperature": 1, "seed": 7, "n": 1}
    assert for_student(request, "a@v1", 4096, TEXT) == {
        "messages": [{"role": "user", "content": "4"}],
        "max_tokens": 4096,
        "stop": ".",
        "stream": True,
        "n": 1,
        "model": "a@v1",
        "temperature": 0.0,
    }


def test_a_responses_request_is_put_to_the_student_as_one_without_state() -> None:
    tool = {"type": "function", "name": "find", "parameters": {}}
    wanted = {"type": "json_schema", "name": "x", "schema": {}}
    request = {
        "model": "big",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "4"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "?"}],
            },
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        ],
        "tools": [tool],
        "tool_choice": "auto",
        "text": {"format": wanted, "verbosity": "low"},
        "max_output_tokens": 9_000,
        "metadata": {"a": "b"},
        "truncation": "auto",
        "reasoning": {"effort": "high"},
        "temperature": 1,
        "stream": True,
    }
    assert for_student(request, "a@v1", 4096, RESPONSES) == {
        "model": "a@v1",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "4"},
            {"role": "assistant", "content": "?"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        ],
        "tools": [tool],
        "tool_choice": "auto",
        "text": {"format": wanted},
        "max_output_tokens": 4096,
        "metadata": {"a": "b"},
        "stream": True,
        "temperature": 0.0,
        "store": False,
    }


def test_what_the_student_is_given_is_not_beyond_it() -> None:
    everyday: dict[str, Any] = {"model": "big", "temperature": 1, "metadata": {}, "user": "u", "stream": True, "unheard_of": 1}
    chat = {"messages": [], "tools": [], "modalities": ["text"], "logit_bias": {}, "audio": None}
    assert beyond({**everyday, **chat}) is None
    assert beyond({**everyday, "prompt": ["4"], "n": 1, "best_of": 1, "echo": False, "suffix": "", "logprobs": None}, TEXT) is None
    function = {"type": "function", "name": "f"}
    responses = {"input": "4", "include": [], "background": False, "store": False, "tools": [function], "tool_choice": function}
    assert beyond({**everyday, **responses, "reasoning": {"effort": "low"}, "truncation": "auto"}, RESPONSES) is None


@pytest.mark.parametrize(
    ("endpoint", "field", "value"),
    [
        *((CHAT, *each) for each in {"functions": [], "audio": {}, "modalities": ["audio"], "logit_bias": {"5": 1}}.items()),
        *((TEXT, *each) for each in {"n": 2, "best_of": 3, "logprobs": 0, "echo": True, "suffix": "x", "prompt": [5]}.items()),
        (TEXT, "logit_bias", {"5": 1}),
        (RESPONSES, "previous_response_id", "resp_1"),
        (RESPONSES, "conversation", "conv_1"),
        (RESPONSES, "prompt", {"id": "pmpt_1"}),
        (RESPONSES, "background", True),
        (RESPONSES, "include", ["reasoning.encrypted_content"]),
        (RESPONSES, "store", True),
        (RESPONSES, "store", None),
        (RESPONSES, "context_management", [{"type": "compaction"}]),
        (RESPONSES, "top_logprobs", 3),
        (RESPONSES, "tools", [{"type": "web_search"}]),
        (RESPONSES, "tool_choice", {"type": "file_search"}),
        (RESPONSES, "text", 3),
        (RESPONSES, "input", [{"type": "item_reference", "id": "msg_1"}]),
        (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]),
    ],
)
def test_what_is_beyond_the_student_is_named(endpoint: str, field: str, value: object) -> None:
    asked = {CHAT: {"messages": []}, TEXT: {"prompt": "4"}, RESPONSES: {"input": "4", "store": False}}[endpoint]
    assert beyond({"model": "big", **asked, field: value}, endpoint) == field


HEAD = "You sort letters. Answer with one word, the department. Never explain anything. Departments: billing, sales, support."
FIXED = Transform((Piece("system", (HEAD,)),))
LETTER = Piece("user", ("Letter: <<<", ">>> Department?"))
DATED = Transform((Piece("system", (f"{HEAD} Today is ", ". Mind the postcode.")), LETTER))


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_a_fixed_message_is_left_out_and_the_rest_is_the_very_same() -> None:
    parts = user([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}])
    kept = apply(FIXED, [system(HEAD), parts, user("b")])
    assert kept == [parts, user("b")]
    assert kept[0] is parts


def test_of_a_message_that_varies_what_varies_stays() -> None:
    messages = [system(f"{HEAD} Today is Monday. Mind the postcode."), user("Letter: <<<Where is it?>>> Department?"), user("x")]
    assert apply(DATED, messages) == [system("Monday"), user("Where is it?"), user("x")]
    middle = Transform((Piece("user", ("A: ", " B: ", " C: ", "")),))
    assert apply(middle, [user("A: 1 B: 2 B: 3 C: 4")]) == [user("1\n2 B: 3\n4")]


def test_without_a_transform_nothing_is_changed() -> None:
    messages = [system(HEAD), "odd shape", 3]
    assert apply(None, messages) == messages


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [system(HEAD)],  # nothing would be left
        [system(HEAD + " "), user("x")],
        [system(HEAD[:-1]), user("x")],
        [user(HEAD), user("x")],
        [user("x"), system(HEAD)],
        [system([{"type": "text", "text": HEAD}]), user("x")],  # of several parts nothing is cut
        [{**system(HEAD), "name": "ann"}, user("x")],
        [{"role": "developer", "content": HEAD}, user("x")],
        ["odd shape", user("x")],
        [{"role": "system"}, user("x")],
    ],
)
def test_what_does_not_begin_exactly_so_is_unseen(messages: list[Any]) -> None:
    with pytest.raises(UnseenTemplate, match="unseen template"):
        apply(FIXED, messages)


@pytest.mark.parametrize("text", ["Letter: <<<>> Department?", "letter: <<<x>>> Department?", "Letter: <<<x>>> Department? "])
def test_a_varying_message_without_its_fixed_texts_is_unseen(text: str) -> None:
    with pytest.raises(UnseenTemplate):
        apply(DATED, [system(f"{HEAD} Today is Monday. Mind the postcode."), user(text)])


def test_fixed_texts_that_overlap_in_a_short_message_are_not_both_there() -> None:
    with pytest.raises(UnseenTemplate):
        apply(Transform((Piece("user", ("abc", "cde")),)), [user("abcde")])
    assert apply(Transform((Piece("user", ("abc", "cde")),)), [user("abccde")]) == [user("")]


def test_a_transform_comes_back_from_its_json() -> None:
    for transform in (FIXED, DATED):
        assert read(json.loads(json.dumps(transform.dump()))) == transform
    assert FIXED.digest() != DATED.digest()
    assert FIXED.digest() == read(FIXED.dump()).digest()


@pytest.mark.parametrize(
    "data",
    [
        None, [], {}, {"version": 2, "head": FIXED.dump()["head"]}, {"version": 1, "head": []}, {"version": 1, "head": [{}]},
        {"version": 1, "head": [{"role": "user", "fixed": []}]}, {"version": 1, "head": [{"role": "user", "fixed": [3]}]},
        {"version": 1, "head": [{"role": "user", "fixed": ["a"], "more": 1}]}, {"version": 1, "head": 3},
        {**FIXED.dump(), "more": 1},
    ],
)  # fmt: skip
def test_what_is_no_transform_of_this_version_is_refused(data: Any) -> None:
    with pytest.raises(BadTransform):
        read(data)


def test_each_endpoint_shows_the_student_the_same_stripped_messages() -> None:
    asked = [system(HEAD), user("4"), {"role": "assistant", "content": "?"}, user("5")]
    shown = for_student({"messages": asked}, "a@v1", None, CHAT, FIXED)["messages"]
    assert shown == asked[1:]
    request = {"instructions": HEAD, "input": asked[1:]}
    body = for_student(request, "a@v1", None, RESPONSES, FIXED)
    assert (body["input"], "instructions" in body) == (shown, False)
    dated = {"instructions": f"{HEAD} Today is Monday. Mind the postcode.", "input": "Letter: <<<4>>> Department?"}
    assert for_student(dated, "a@v1", None, RESPONSES, DATED)["input"] == [system("Monday"), user("4")]
    text = Transform((Piece("user", (f"{HEAD}\n\n", "")),))
    assert for_student({"prompt": f"{HEAD}\n\n4"}, "a@v1", None, TEXT, text)["messages"] == [user("4")]
    for endpoint, other in ((CHAT, {"messages": "x"}), (CHAT, {}), (TEXT, {"prompt": "4"}), (RESPONSES, {"input": "4"})):
        with pytest.raises(UnseenTemplate):
            for_student(other, "a@v1", None, endpoint, FIXED)


@given(st.text("ab", max_size=300), st.text("ab", min_size=1, max_size=80), st.integers(0, 40))
def test_a_fixed_text_is_found_where_it_is_first(text: str, literal: str, at: int) -> None:
    text = f"{text}{literal}{text}"
    assert prompts._find(text, literal, at, len(text) - 1) == text.find(literal, at, len(text) - 1)


@given(
    st.lists(st.text("ab .", max_size=20), min_size=2, max_size=4), st.lists(st.text("ab .xy", max_size=60), min_size=1, max_size=3)
)
def test_what_stays_and_what_is_fixed_make_the_whole(fixed: list[str], varying: list[str]) -> None:
    pieces = fixed[: len(varying) + 1]
    text = "".join(one + other for one, other in zip(pieces, varying, strict=False)) + (
        pieces[-1] if len(pieces) > len(varying) else ""
    )
    try:
        found = prompts._varying(tuple(pieces), text)
    except UnseenTemplate:
        return
    assert "".join(one + other for one, other in zip(pieces, [*found, ""], strict=True)) == text
