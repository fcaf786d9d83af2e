"""The columns of a capture that are read out of its bodies, for people, search and counting; the same whoever writes the row."""

from typing import Any

import orjson

from store import answers, tasks
from store.answers import Answer
from store.chat import CHAT, as_chat

_INT_MAX = 2**31 - 1


def columns(request: dict[str, Any], answer: Answer, endpoint: str = CHAT) -> dict[str, Any]:
    """Model, texts, finish reason, token counts and meta of one exchange. Never raises for a strange request."""
    request = as_chat(endpoint, request)
    model = request.get("model")
    return {
        "model": text(model, 200) if isinstance(model, str) else "",
        "prompt_text": text(_prompt(request)),
        "answer_text": text(answers.text_of(answer.message)),
        "finish_reason": text(answer.finish_reason, 40),
        "prompt_tokens": count(answer.prompt_tokens),
        "completion_tokens": count(answer.completion_tokens),
        "meta": _meta(request),
    }


def text(value: object, limit: int | None = None) -> str | None:
    """Text as PostgreSQL takes it: without NUL, not longer than its column."""
    return None if value is None else str(value).replace("\0", "")[:limit]


def count(value: int | None) -> int | None:
    """A number as an integer column takes it."""
    return None if value is None else min(max(int(value), 0), _INT_MAX)


def _prompt(request: dict[str, Any]) -> str:
    messages = request.get("messages")
    asked = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"] if isinstance(messages, list) else []
    return tasks.text_of(asked[-1].get("content")) if asked else ""


def _meta(request: dict[str, Any]) -> dict[str, Any]:
    metadata = request.get("metadata")
    meta = dict(metadata) if isinstance(metadata, dict) and _writable(metadata) else {}
    if isinstance(request.get("user"), str):
        meta["user"] = request["user"]
    return meta


def _writable(value: object) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:  # nested deeper than the database is given JSON
        return False
    return True
