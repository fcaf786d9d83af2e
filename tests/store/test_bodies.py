"""What people, search and counting see of an exchange."""

from typing import Any

import pytest

from store.answers import Answer
from store.bodies import columns
from store.chat import CHAT, RESPONSES, TEXT

MESSAGES = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "first"}, {"role": "user", "content": "My card"}]


@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        (CHAT, {"messages": MESSAGES}),
        (TEXT, {"prompt": "My card"}),
        (RESPONSES, {"input": "My card", "instructions": "Sort."}),
        (RESPONSES, {"input": [*MESSAGES[:2], {"role": "user", "content": [{"type": "input_text", "text": "My card"}]}]}),
    ],
)
def test_an_exchange_has_the_same_columns_at_each_endpoint(endpoint: str, asked: dict[str, Any]) -> None:
    request = {"model": "big", "metadata": {"a": "b"}, "user": "u", **asked}
    answer = Answer({"role": "assistant", "content": "lost\0"}, "stop", 9, 2)
    assert columns(request, answer, endpoint) == {
        "model": "big",
        "prompt_text": "My card",
        "answer_text": "lost",
        "finish_reason": "stop",
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "meta": {"a": "b", "user": "u"},
    }
