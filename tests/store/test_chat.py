"""The chat view of what was asked at each completion endpoint."""

from typing import Any

import pytest

from store.chat import CHAT, ENDPOINTS, RESPONSES, TEXT, as_chat, hidden, items_of, messages_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "find", "arguments": '{"a": 1}', "status": "completed"}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "7"}
FOUND = {"role": "tool", "tool_call_id": "call_1", "content": "7"}


def said(*texts: str, **more: Any) -> dict[str, Any]:
    """An output message as a client sends it back."""
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": parts, **more}


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "input_text", "text": text} for text in texts]}


def test_a_chat_request_is_its_own_view() -> None:
    request = {"model": "big", "messages": [], "prompt": "x"}
    assert as_chat(CHAT, request) is request
    assert as_chat("/v1/embeddings", request) is request


def test_a_responses_request_is_the_chat_request_that_asks_the_same() -> None:
    request = {
        "model": "big",
        "instructions": "Be brief.",
        "input": "Hello",
        "tools": [{"type": "function", "name": "find", "description": "It finds.", "parameters": SCHEMA, "strict": None}],
        "tool_choice": {"type": "function", "name": "find"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
        "max_output_tokens": 40,
        "metadata": {"task": "t"},
        "user": "u",
        "stream": True,
        "temperature": 0.5,
        "truncation": "auto",
        "reasoning": {"effort": "low"},
        "stream_options": {"include_obfuscation": False},
    }
    assert as_chat(RESPONSES, request) == {
        "model": "big",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "tools": [{"type": "function", "function": {"name": "find", "description": "It finds.", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "find"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        "max_completion_tokens": 40,
        "metadata": {"task": "t"},
        "user": "u",
        "stream": True,
        "temperature": 0.5,
        "reasoning_effort": "low",
    }
    assert hidden(RESPONSES, request) is None


def test_text_is_the_format_that_nobody_has_to_ask_for() -> None:
    assert "response_format" not in as_chat(RESPONSES, {"input": "x", "text": {"format": {"type": "text"}}})
    assert as_chat(RESPONSES, {"text": {"format": {"type": "json_object"}}})["response_format"] == {"type": "json_object"}


TURNS = [
    ("Hello", [{"role": "user", "content": "Hello"}]),
    ([user("Hello")], [{"role": "user", "content": "Hello"}]),
    ([{"role": "user", "content": "Hello"}], [{"role": "user", "content": "Hello"}]),
    ([user("a", "b")], [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]),
    ([{"role": "developer", "content": "Be brief."}], [{"role": "developer", "content": "Be brief."}]),
    ([said("one", " answer")], [{"role": "assistant", "content": "one answer"}]),
    ([said("a"), said("b")], [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]),
    ([CALL, RESULT], [{"role": "assistant", "content": None, "tool_calls": [CALLED]}, FOUND]),
    ([said("Wait."), CALL, CALL], [{"role": "assistant", "content": "Wait.", "tool_calls": [CALLED, CALLED]}]),
    ([CALL, said("Wait.")], [{"role": "assistant", "content": "Wait.", "tool_calls": [CALLED]}]),
    (
        [user("q"), {"type": "reasoning", "summary": []}, CALL, RESULT, said("7"), user("more")],
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            FOUND,
            {"role": "assistant", "content": "7"},
            {"role": "user", "content": "more"},
        ],
    ),
    ([{**RESULT, "output": [{"type": "input_text", "text": "7"}]}], [FOUND]),
]


@pytest.mark.parametrize(("given", "messages"), TURNS)
def test_items_are_messages_and_back_again(given: Any, messages: list[dict[str, Any]]) -> None:
    assert messages_of(given) == messages
    assert messages_of(items_of(messages)) == messages
    assert hidden(RESPONSES, {"input": given}) is None


def test_a_refusal_in_an_earlier_turn_is_no_text() -> None:
    refused = said() | {"content": [{"type": "refusal", "refusal": "No."}]}
    assert messages_of([refused]) == [{"role": "assistant", "content": None, "refusal": "No."}]
    assert items_of(messages_of([refused])) == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"input": [3]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input"),
        ({"input": [{"type": ["message"], "role": "user", "content": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input"),
        ({"input": [{"content": "x"}]}, "input"),
        ({"input": [{**RESULT, "output": [{"type": "input_image"}]}]}, "input"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "x", "tools": [{"type": "mcp", "server_label": "x"}]}, "tools"),
        ({"input": "x", "tools": {"type": "function"}}, "tools"),
        ({"input": "x", "instructions": [user("x")]}, "instructions"),
    ],
)
def test_what_the_view_does_not_show_of_a_responses_request_is_named(request_: dict[str, Any], field: str) -> None:
    assert hidden(RESPONSES, request_) == field
    assert isinstance(as_chat(RESPONSES, request_)["messages"], list)


def test_a_text_completion_is_one_message_of_the_users() -> None:
    request = {"model": "big", "prompt": "Say hello", "max_tokens": 5, "stop": ["\n"], "best_of": 2, "logprobs": 3, "echo": False}
    view = {"model": "big", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 5, "stop": ["\n"]}
    assert as_chat(TEXT, request) == as_chat(TEXT, {**request, "prompt": ["Say hello"]}) == view
    assert hidden(TEXT, request) is None


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True}, "echo"),
    ],
)
def test_what_the_view_does_not_show_of_a_text_completion_is_named(request_: dict[str, Any], field: str) -> None:
    assert hidden(TEXT, request_) == field
    assert isinstance(as_chat(TEXT, request_)["messages"], list)


STRANGE: list[Any] = [None, 3, "x", True, [], {}, [None], [3], [[]], ["x"], {"type": []}, [{"type": {}}], [{"type": "message"}]]
STRANGE += [
    [{"type": "function_call"}, {"role": "assistant", "content": 3}],
    [{"role": "assistant", "content": [None, {"type": 3}]}],
]
STRANGE += [[{"role": "user", "content": [3, {"type": "input_image"}]}], [{"type": "function", "name": []}], {"format": 3}]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("value", STRANGE)
def test_no_value_of_any_field_raises(endpoint: str, value: Any) -> None:
    names = (
        "model",
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "prompt",
        "metadata",
        "max_output_tokens",
    )
    for name in names:
        request = {"input": "x", name: value}
        assert isinstance(as_chat(endpoint, request), dict)
        assert hidden(endpoint, request) in (None, *names)
