"""Task identity: which student a request belongs to.

A task's key is the hash of what stays fixed while requests vary: teacher model, system messages, tools, response format.
An explicit name (the header `x-stillroom-task`, or `metadata.task` in the body) wins. The name or the id that the key gives by
itself names the same task: a client may send back what it was told.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, select

from store.chat import CHAT, RESPONSES, as_chat
from store.tables import Task

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}")
_WORD = re.compile(r"[A-Za-z0-9]+")
_REMEMBERED = 256  # identities, each with what stays fixed in its requests, if that is
_SHORT = 32_768  # characters at most: what is remembered is not to fill the memory


@dataclass(frozen=True)
class Identity:
    """A task as one request shows it; the row is made when the request's capture is stored."""

    id: str  #: `task_` + 16 hexadecimal digits
    name: str
    teacher_model: str
    system: str


class BadTaskName(ValueError):
    """A task name is 1 to 100 letters, digits, spaces and . _ / - and begins with a letter or a digit."""

    def __str__(self) -> str:
        return f"{self.args[0]!r} is no task name: {BadTaskName.__doc__}"


def identify(request: dict[str, Any], name: str | None = None, endpoint: str = CHAT) -> Identity:
    """The task of a request to one of the completion endpoints. Raises BadTaskName for an explicit name that is none.

    Never raises for a strange body: what is not there or has another type counts as absent.
    """
    if endpoint == RESPONSES:  # whose turns may be many, and do not matter here
        items = request.get("input")
        request = {**request, "input": [item for item in items if _is_fixed(item)] if isinstance(items, list) else None}
    request = as_chat(endpoint, request)
    metadata = request.get("metadata")
    if not name and isinstance(metadata, dict) and isinstance(metadata.get("task"), str):
        name = metadata["task"]
    if name and not NAME.fullmatch(name):
        raise BadTaskName(name)
    model, tools, wanted = request.get("model"), request.get("tools"), request.get("response_format")
    keyed = _keyed(model if isinstance(model, str) else "", system_text(request), tools, wanted)
    if not name or name in (keyed.id, keyed.name):
        return keyed
    return Identity(id=_named(name), name=name, teacher_model=keyed.teacher_model, system=keyed.system)


def system_text(request: Mapping[str, Any]) -> str:
    """All system and developer messages' text, one after the other; "" if there is none."""
    messages = request.get("messages")
    if not isinstance(messages, list):
        return ""
    return "\n\n".join([text_of(message.get("content")) for message in messages if _is_fixed(message)])


def text_of(content: Any) -> str:
    """The text of a message's content, be it a string, a list of parts or nothing."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
    return "\n".join(p for p in parts if isinstance(p, str))


def ensure(session: Session, identity: Identity) -> Task:
    """The task's row, made now if this is its first request. A name that is taken gets the id's last digits, or all, behind it."""
    for suffix in ("", f" {identity.id[-6:]}", f" {identity.id}"):
        if task := session.get(Task, identity.id):
            return task
        name = identity.name + suffix
        if session.exec(select(Task.id).where(Task.name == name)).first():
            continue
        model, system = (text.replace("\0", "") for text in (identity.teacher_model, identity.system))  # PostgreSQL takes no NUL
        task = Task(id=identity.id, name=name, teacher_model=model[:200], system=system)
        with contextlib.suppress(IntegrityError):  # another process made it, or took its name, at the same moment
            with session.begin_nested():
                session.add(task)
            return task
    if task := session.get(Task, identity.id):
        return task
    raise LookupError(f"every name that {identity.id} could have is taken")


def find(session: Session, name_or_id: str) -> Task | None:
    """A task by id or by name."""
    if "\0" in name_or_id:  # PostgreSQL would not even look
        return None
    return session.get(Task, name_or_id) or session.exec(select(Task).where(Task.name == name_or_id)).first()


def _is_fixed(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def _keyed(model: str, system: str, tools: Any, wanted: Any) -> Identity:
    try:
        fixed = b"" if tools is None and wanted is None else orjson.dumps([tools, wanted])
    except TypeError:  # nested deeper than orjson writes
        return _identity(model, system, tools, wanted)
    short = len(model) + len(system) + len(fixed) <= _SHORT
    return _remembered(model, system, fixed) if short else _identity(model, system, tools, wanted)


@lru_cache(maxsize=_REMEMBERED)
def _remembered(model: str, system: str, fixed: bytes) -> Identity:
    return _identity(model, system, *(orjson.loads(fixed) if fixed else (None, None)))


def _identity(model: str, system: str, tools: Any, wanted: Any) -> Identity:
    digest = _digest(["key", model, system, tools, wanted])
    return Identity(id=f"task_{digest}", name=_invent_name(system, digest), teacher_model=model, system=system)


@lru_cache(maxsize=_REMEMBERED)
def _named(name: str) -> str:
    return f"task_{_digest(['name', name])}"


def _digest(parts: list[Any]) -> str:
    try:
        text = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # nested deeper than orjson writes
        text = " ".join(_tokens(parts)).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _tokens(value: Any) -> Iterator[str]:
    """A JSON value in one reading only, keys sorted; without recursion, so that no depth is too much."""
    left = [value]
    while left:
        top = left.pop()
        if isinstance(top, dict):
            yield f"{{{len(top)}"
            left += [each for key in sorted(top, reverse=True) for each in (top[key], key)]
        elif isinstance(top, list):
            yield f"[{len(top)}"
            left += reversed(top)
        else:
            yield ascii(top)


def _invent_name(system: str, digest: str) -> str:
    words = [found.group().lower() for found in islice(_WORD.finditer(system), 6)]
    return "-".join([*words, digest[:6]])[:100] if words else f"no-system-{digest[:6]}"
