"""Reading what was answered at a completion endpoint: a body, whole or streamed, as one assistant message.

Never validates strictly: what clients really receive does not always fit OpenAI's own types.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from store.chat import CHAT, RESPONSES, TEXT, messages_of

#: The events that end a Responses stream; each carries the whole response.
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


@dataclass(frozen=True)
class Answer:
    """The first choice of a completion, or a response."""

    message: dict[str, Any] = field(default_factory=dict)  #: assistant message; {} if there was none
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None  #: the body's own error message, or why it cannot be read
    ended: bool = True  #: a stream reached its `[DONE]` or terminal event; a JSON body was whole


def read(body: bytes, *, stream: bool, endpoint: str = CHAT) -> Answer:
    """The answer in a response body: JSON, or the raw text of an SSE stream. Never raises."""
    return read_stream(body, endpoint) if stream else read_json(body, endpoint)


def read_json(body: bytes, endpoint: str = CHAT) -> Answer:
    """The answer in a chat.completion, text_completion or response body."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return Answer(error=f"the body is no JSON: {error}", ended=False)
    if not isinstance(data, dict):
        return Answer(error="the body is no JSON object")
    if data.get("error"):
        return Answer(error=_error_text(data["error"]))
    if endpoint == RESPONSES:
        return _response(data)
    choice = _first(data.get("choices"), index=0)
    message = _said(choice) if endpoint == TEXT else choice.get("message")
    return Answer(
        message=message if isinstance(message, dict) else {},
        finish_reason=_text(choice.get("finish_reason")),
        **_usage(data),
        error=None if isinstance(message, dict) else "the body has no message",
    )


def read_stream(body: bytes, endpoint: str = CHAT) -> Answer:
    """The answer in an event stream: the deltas of choice 0 put together, or the response that the terminal event carries."""
    if endpoint == RESPONSES:
        return _response_stream(body)
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
        if isinstance(chunk.get("usage"), dict):
            usage = _usage(chunk)
        choice = _first(chunk.get("choices"), index=0)
        finish = _text(choice.get("finish_reason")) or finish
        delta = _said(choice) if endpoint == TEXT else choice.get("delta")
        if not isinstance(delta, dict):
            continue
        if isinstance(text := delta.get("content"), str):
            content.append(text)
            if len(delta) == 1:  # as most are
                continue
        role = _text(delta.get("role")) or role
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


def _response(data: dict[str, Any]) -> Answer:
    """The answer in a response object: its output items as one message, its status as a finish reason."""
    message = _one(messages_of(data.get("output")))
    status = _text(data.get("status"))
    details = data.get("incomplete_details")
    why = _text(details.get("reason")) if isinstance(details, dict) else None
    if status == "completed":
        status = "tool_calls" if message.get("tool_calls") else "stop"
    elif status == "incomplete":
        status = "length" if why in (None, "max_output_tokens") else why
    error = None if isinstance(data.get("output"), list) else "the body has no output"
    error = "the response failed" if status == "failed" else error
    return Answer(message=message, finish_reason=status, **_usage(data, "input_tokens", "output_tokens"), error=error)


def _response_stream(body: bytes) -> Answer:
    """The terminal event's answer; of a stream that has none, or has an empty one, what its deltas come to."""
    items: dict[int, dict[str, Any]] = {}
    error = None
    for data in events(body):
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            error = error or (None if data.strip() == b"[DONE]" else "an event of the stream is no JSON")
            continue
        if not isinstance(event, dict):
            continue
        kind, response = event.get("type"), event.get("response")
        if kind in TERMINAL and isinstance(response, dict):
            answer = Answer(error=_error_text(response["error"])) if response.get("error") else _response(response)
            return replace(answer, message=answer.message or _put_together(items), error=error or answer.error)
        if kind == "error" or event.get("error"):
            error = _error_text(event.get("error") or event)
        _add_item(items, event)
    return Answer(message=_put_together(items), error=error, ended=False)


def _add_item(items: dict[int, dict[str, Any]], event: dict[str, Any]) -> None:
    """What one event adds to the output items, by their index: an item, or a part of its text or arguments."""
    kind, index, delta = event.get("type"), event.get("output_index"), event.get("delta")
    index = index if isinstance(index, int) else max(items, default=0)
    if kind in ("response.output_item.added", "response.output_item.done") and isinstance(event.get("item"), dict):
        items[index] = event["item"]
    elif kind in ("response.output_text.delta", "response.refusal.delta") and isinstance(delta, str):
        parts = items.setdefault(index, {"type": "message", "role": "assistant"})
        if not isinstance(parts.get("content"), list):
            parts["content"] = []
        name = "text" if kind == "response.output_text.delta" else "refusal"
        parts["content"].append({"type": "output_text" if name == "text" else name, name: delta})
    elif kind == "response.function_call_arguments.delta" and isinstance(delta, str):
        call = items.setdefault(index, {"type": "function_call"})
        call["arguments"] = (_text(call.get("arguments")) or "") + delta


def _put_together(items: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return _one(messages_of([items[index] for index in sorted(items)])) or {"role": "assistant", "content": ""}


def _one(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What an assistant said in one response as one message; {} if there is nothing."""
    said = [message for message in messages if message["role"] == "assistant"]
    if len(said) < 2:
        return said[0] if said else {}
    texts = [message["content"] for message in said if isinstance(message["content"], str)]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None}
    if calls := [call for each in said for call in each.get("tool_calls", [])]:
        message["tool_calls"] = calls
    refusals = [each["refusal"] for each in said if "refusal" in each]
    return {**message, "refusal": "".join(refusals)} if refusals else message


def _said(choice: dict[str, Any]) -> dict[str, Any] | None:
    """A choice of a text completion as the message, or the delta, that it would be in chat."""
    text = choice.get("text")
    return {"role": "assistant", "content": text} if isinstance(text, str) else None


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
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("index", index) == index:
            return choice
    return {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _usage(data: dict[str, Any], prompt: str = "prompt_tokens", completion: str = "completion_tokens") -> dict[str, Any]:
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = {"prompt_tokens": usage.get(prompt), "completion_tokens": usage.get(completion)}
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
