"""Reading what was answered: a chat completion body, whole or streamed, as one assistant message.

Never validates strictly: what clients really receive does not always fit OpenAI's own types.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True)
class Answer:
    """The first choice of a completion."""

    message: dict[str, Any] = field(default_factory=dict)  #: assistant message; {} if there was none
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None  #: the body's own error message, or why it cannot be read
    ended: bool = True  #: a stream reached its `[DONE]`; a JSON body was whole


def read(body: bytes, *, stream: bool) -> Answer:
    """The answer in a response body: JSON, or the raw text of an SSE stream. Never raises."""
    return read_stream(body) if stream else read_json(body)


def read_json(body: bytes) -> Answer:
    """The answer in a chat.completion body."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return Answer(error=f"the body is no JSON: {error}", ended=False)
    if not isinstance(data, dict):
        return Answer(error="the body is no JSON object")
    if data.get("error"):
        return Answer(error=_error_text(data["error"]))
    choice = _first(data.get("choices"), index=0)
    message = choice.get("message")
    return Answer(
        message=message if isinstance(message, dict) else {},
        finish_reason=_text(choice.get("finish_reason")),
        **_usage(data),
        error=None if isinstance(message, dict) else "the body has no message",
    )


def read_stream(body: bytes) -> Answer:
    """The answer in a chat.completion.chunk stream: the deltas of choice 0 put together."""
    role, refusal, finish = "assistant", "", None
    content: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    error = None
    ended = False
    for data in events(body):
        if data.strip() == b"[DONE]":
            ended = True
            break
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            error = error or "an event of the stream is no JSON"
            continue
        if not isinstance(chunk, dict):
            continue
        if chunk.get("error"):
            error = _error_text(chunk["error"])
        usage = _usage(chunk) if isinstance(chunk.get("usage"), dict) else usage
        choice = _first(chunk.get("choices"), index=0)
        finish = _text(choice.get("finish_reason")) or finish
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        role = _text(delta.get("role")) or role
        content.append(_text(delta.get("content")) or "")
        refusal += _text(delta.get("refusal")) or ""
        for call in _dicts(delta.get("tool_calls")):
            _add_call(calls, call)
    message: dict[str, Any] = {"role": role, "content": "".join(content) if any(content) or not calls else None}
    if calls:
        message["tool_calls"] = [calls[i] for i in sorted(calls)]
    if refusal:
        message["refusal"] = refusal
    return Answer(message=message, finish_reason=finish, error=error, ended=ended, **usage)


def events(body: bytes) -> list[bytes]:
    """The data of each SSE event: line ends LF, CRLF or CR, several data lines joined, comments skipped."""
    found: list[bytes] = []
    lines: list[bytes] = []
    for line in [*body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), b""]:
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            found.append(b"\n".join(lines))
            lines = []
    return found


def text_of(message: dict[str, Any]) -> str:
    """An assistant message as text for people and for search: its content, else its tool calls, else its refusal."""
    content = message.get("content")
    if isinstance(content, str) and content:
        return content
    if calls := [call.get("function") for call in _dicts(message.get("tool_calls"))]:
        try:
            return orjson.dumps(calls, default=str).decode()
        except TypeError:  # nested deeper than orjson writes
            return ""
    return _text(message.get("refusal")) or ""


def _add_call(calls: dict[int, dict[str, Any]], delta: dict[str, Any]) -> None:
    index = delta.get("index")
    call = calls.setdefault(
        index if isinstance(index, int) else max(calls, default=0),
        {"id": None, "type": "function", "function": {"name": "", "arguments": ""}},
    )
    call["id"] = call["id"] or delta.get("id")
    function = delta.get("function")
    if isinstance(function, dict):
        call["function"]["name"] += _text(function.get("name")) or ""
        call["function"]["arguments"] += _text(function.get("arguments")) or ""


def _first(choices: Any, *, index: int) -> dict[str, Any]:
    return next((choice for choice in _dicts(choices) if choice.get("index", index) == index), {})


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _usage(data: dict[str, Any]) -> dict[str, Any]:
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = {key: usage.get(key) for key in ("prompt_tokens", "completion_tokens")}
    return {key: value if isinstance(value, int) else None for key, value in counts.items()}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _error_text(error: Any) -> str:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    try:
        return str(error)
    except RecursionError:
        return "an error that is nested too deeply to be written down"
