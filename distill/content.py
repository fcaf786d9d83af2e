"""What makes two exchanges the same to a student: hashes of prompts and pairs."""

import hashlib
from typing import Any

import orjson

from store.tables import Message, Pair


def digest(value: object) -> str:
    """SHA-256 of a JSON value, its keys sorted."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def of_prompt(pair: Pair) -> str:
    """The hash of its messages and tools."""
    return digest([anonymous(pair.messages), pair.tools])


def of_pair(pair: Pair) -> str:
    """The hash of its messages, tools and completion: equal pairs have the same one."""
    return digest([anonymous(pair.messages), pair.tools, anonymous([pair.completion])])


def anonymous(messages: list[Message]) -> list[Message]:
    """Without the ids of tool calls: they are drawn anew each time."""
    return [
        {key: [_without(call, "id") for call in value] if key == "tool_calls" else value for key, value in each.items()}
        for each in (_without(message, "tool_call_id") for message in messages)
    ]


def _without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}
