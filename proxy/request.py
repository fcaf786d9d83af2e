"""A completion request as the proxy needs to know it. Never validates: all else about a body is the teacher's to judge."""

import json
from enum import StrEnum
from typing import Any

import orjson

from proxy.errors import Refusal
from store import tasks
from store.chat import CHAT
from store.tasks import BadTaskName, Identity
from store.templates import NOTHING, Directory

# Reading a body takes the event loop from all others: a text of 100 MB as long as 100,000 small values, and they take the memory.
_LARGE = 1_000_000  # bytes: no smaller body is looked at before it is read
_MOST = 600_000  # commas, brackets and braces that a large body may have, those in its texts among them
_LENIENTLY = 10_000_000, 200_000  # bytes, and commas and so on, of what is read the slow way


class Wish(StrEnum):
    """Who should answer, as the client says in x-stillroom-route."""

    AUTO = "auto"
    TEACHER = "teacher"
    STUDENT = "student"


def parse(body: bytes) -> dict[str, Any]:
    """The request in a body. Raises Refusal if it is no JSON object, or has more values than can be read in time.

    What JSON forbids and some clients send nevertheless (NaN, lone surrogates) is read as null and "?"; the teacher gets
    the bytes as they are.
    """
    if len(body) > _LARGE and _values(body) > _MOST:
        raise Refusal(413, "body_too_complex", f"The request body has more than {_MOST:,} commas, brackets and braces.")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        request = _parse_leniently(body, error)
    if not isinstance(request, dict):
        raise Refusal(400, "invalid_json", 'The request body must be a JSON object such as {"model": ..., "messages": [...]}.')
    return request


def model(body: bytes) -> str | None:
    """The model that a pass-through body names; None where it is no JSON object, or names none."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    named = request.get("model") if isinstance(request, dict) else None
    return named if isinstance(named, str) else None


def identify(request: dict[str, Any], name: str | None, endpoint: str = CHAT, directory: Directory = NOTHING) -> Identity:
    """The request's task; `name` is what x-stillroom-task says. Raises Refusal for a name that is none.

    `metadata.task` counts only where it can be a task's name: it may be there for the client's own reasons.
    """
    try:
        return tasks.identify(request, name, endpoint, directory)
    except BadTaskName as error:
        if name:
            raise Refusal(400, "bad_task_name", f"Header x-stillroom-task: {error}", "x-stillroom-task") from error
        return tasks.identify({**request, "metadata": None}, None, endpoint, directory)


def wish(value: str | None) -> Wish:
    """What x-stillroom-route asks for. Raises Refusal for anything else than teacher, student or auto."""
    try:
        return Wish((value or Wish.AUTO).lower())
    except ValueError as error:
        known = ", ".join(Wish)
        raise Refusal(400, "bad_route", f"Header x-stillroom-route: {value!r} is none of {known}.", "x-stillroom-route") from error


def _values(body: bytes) -> int:
    return len(body) - len(body.translate(None, b",[{"))


def _parse_leniently(body: bytes, strict: orjson.JSONDecodeError) -> Any:
    size, values = _LENIENTLY
    try:
        if len(body) > size or (len(body) > _LARGE and _values(body) > values):
            raise ValueError("too large to be read leniently")
        value = json.loads(body, parse_constant=lambda _: None)
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "invalid_json", f"The request body cannot be read as JSON: {strict}.") from error
