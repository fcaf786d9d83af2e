"""What the student is shown of a request."""

from typing import Any

import pytest

from store.chat import CHAT, RESPONSES, TEXT
from store.prompts import beyond, for_student


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
