"""Task identity: which student a request belongs to.

A request's key is the hash of its teacher model, system messages, tools and response format. Where nothing more is known, it is its
task's id. What is known is in a `templates.Directory`: keys and templates (system messages, or questions where there is no system
message, that differ in dates, names, passages, examples) which belong to one task, and how a person has merged and divided tasks.

An explicit name (the header `x-stillroom-task`, or `metadata.task` in the body) wins. The name or the id that a request has by
itself names the same task: a client may send back what it was told.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from store.chat import CHAT, RESPONSES, as_chat
from store.tables import Task, TaskAlias
from store.templates import NOTHING, Directory

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}")
_WORD = re.compile(r"[A-Za-z0-9]+")
_REMEMBERED = 256  # identities, each with what stays fixed in its requests, if that is
_SHORT = 32_768  # characters at most: what is remembered is not to fill the memory
# System messages that say nothing of what is to be done: what is asked does.
_SAYS_NOTHING = re.compile(
    r"(you are|you're|act as) (a|an|my|the) ((helpful|friendly|useful|honest|harmless|ai|and),? )*(ai|assistant)\W*", re.IGNORECASE
)


@dataclass(frozen=True)
class Identity:
    """A task as one request shows it; the row is made when the request's capture is stored."""

    id: str  #: `task_` + 16 hexadecimal digits
    name: str
    teacher_model: str
    system: str
    shape: str = ""  #: the hash of model, tools and response format, in which tasks are told apart; none for a task that is named


class BadTaskName(ValueError):
    """A task name is 1 to 100 letters, digits, spaces and . _ / - and begins with a letter or a digit."""

    def __str__(self) -> str:
        return f"{self.args[0]!r} is no task name: {BadTaskName.__doc__}"


def identify(request: dict[str, Any], name: str | None = None, endpoint: str = CHAT, directory: Directory = NOTHING) -> Identity:
    """The task of a request to one of the completion endpoints. Raises BadTaskName for an explicit name that is none.

    Never raises for a strange body: what is not there or has another type counts as absent.
    """
    given = request
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
    model, system = model if isinstance(model, str) else "", system_text(request)
    asked: Callable[[], str] = lambda: asked_text(given, endpoint)  # noqa: E731 - read only where it matters
    fixed = _fixed(tools, wanted)
    if not name and not directory.exact and (found := _fitting(model, system, fixed, asked, directory)) is not None:
        return found
    keyed = _keyed(model, system, tools, wanted, fixed)
    placed = directory.place(keyed.id, keyed.shape, keyed.system, asked)
    found = keyed if placed == keyed.id else _called(keyed, placed, directory)
    if not name or name in (keyed.id, keyed.name, found.id, found.name):
        return found
    named = _named(name)
    known = directory.called.get(name) or directory.aliases.get(name) or directory.aliases.get(named)
    placed = directory.within(known or named, keyed.system, asked)
    if known or placed != named:
        return _called(keyed, placed, directory)
    return Identity(id=named, name=name, teacher_model=keyed.teacher_model, system=keyed.system)


def asked_text(request: Mapping[str, Any], endpoint: str = CHAT) -> str:
    """The text of the first user message; "" if there is none."""
    if endpoint == RESPONSES:
        items = request.get("input")
        if isinstance(items, list):
            first = next((item for item in items if isinstance(item, dict) and item.get("role") == "user"), None)
            request = {"input": [] if first is None else [first]}
        else:
            request = {"input": items}
    messages = as_chat(endpoint, dict(request)).get("messages")
    if not isinstance(messages, list):
        return ""
    return next((text_of(m.get("content")) for m in messages if isinstance(m, dict) and m.get("role") == "user"), "")


def says_nothing(system: str) -> bool:
    """Whether a system message does not tell one task from another: there is none, or it is that of any assistant."""
    return not system.strip() or (len(system) < 80 and _SAYS_NOTHING.fullmatch(system.strip()) is not None)


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


def part_of(task_id: str, segments: Sequence[str]) -> tuple[str, str]:
    """(id, name) of a part of a task that is known by this template."""
    digest = _digest(["part", task_id, *segments])
    return f"task_{digest}", _invent_name(" ".join(segments), digest)


def name_of(task_id: str, system: str) -> str:
    """What a task is called that nobody has named."""
    return _invent_name(system, task_id.removeprefix("task_"))


def ensure(session: Session, identity: Identity) -> Task:
    """The task's row, made now if this is its first request. A name that is taken gets the id's last digits, or all, behind it."""
    for suffix in ("", f" {identity.id[-6:]}", f" {identity.id}"):
        if task := session.get(Task, identity.id):
            return task
        name = identity.name + suffix
        if session.exec(select(Task.id).where(Task.name == name)).first():
            continue
        model, system = (text.replace("\0", "") for text in (identity.teacher_model, identity.system))  # PostgreSQL takes no NUL
        task = Task(id=identity.id, name=name, teacher_model=model[:200], system=system, shape=identity.shape)
        with contextlib.suppress(IntegrityError):  # another process made it, or took its name, at the same moment
            with session.begin_nested():
                session.add(task)
            return task
    if task := session.get(Task, identity.id):
        return task
    raise LookupError(f"every name that {identity.id} could have is taken")


def find(session: Session, name_or_id: str) -> Task | None:
    """A task by id or by name; also by those of a task that was merged into it."""
    if "\0" in name_or_id:  # PostgreSQL would not even look
        return None
    if task := session.get(Task, name_or_id) or session.exec(select(Task).where(Task.name == name_or_id)).first():
        return task
    merged = sa.or_(col(TaskAlias.id) == name_or_id, col(TaskAlias.name) == name_or_id)
    alias = session.exec(select(TaskAlias).where(merged).order_by(col(TaskAlias.changed_at).desc())).first()
    return None if alias is None else session.get(Task, alias.task_id)


def _is_fixed(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def _called(keyed: Identity, task_id: str, directory: Directory) -> Identity:
    """The identity of a task that the directory leads to."""
    return Identity(task_id, directory.names.get(task_id, task_id), keyed.teacher_model, keyed.system, keyed.shape)


def _fitting(model: str, system: str, fixed: bytes | None, asked: Callable[[], str], directory: Directory) -> Identity | None:
    """The task whose template the system message fits: its key, which takes longer, is not needed then."""
    if not directory.shelves or not system or fixed is None or len(model) + len(fixed) > _SHORT:
        return None
    _, shape = _shape(model, fixed)
    shelf = directory.shelves.get(shape)
    template = None if shelf is None else shelf.find(system)
    if template is None:
        return None
    task_id = directory.within(template.task_id, system, asked)
    return Identity(task_id, directory.names.get(task_id, task_id), model, system, shape)


def _fixed(tools: Any, wanted: Any) -> bytes | None:
    """Tools and response format as bytes; b"" for none, None where they are nested deeper than orjson writes."""
    try:
        return b"" if tools is None and wanted is None else orjson.dumps([tools, wanted])
    except TypeError:
        return None


def _keyed(model: str, system: str, tools: Any, wanted: Any, fixed: bytes | None) -> Identity:
    if fixed is None:
        return _identity(model, system, _digest(["key", model, system, tools, wanted]), _digest(["shape", model, tools, wanted]))
    if len(model) + len(system) + len(fixed) <= _SHORT:
        return _remembered(model, system, fixed)
    return _identity(model, system, _key(model, system, _sorted(fixed)), _shape_of(model, _sorted(fixed)))


@lru_cache(maxsize=_REMEMBERED)
def _remembered(model: str, system: str, fixed: bytes) -> Identity:
    ordered, shape = _shape(model, fixed)
    return _identity(model, system, _key(model, system, ordered), shape)


@lru_cache(maxsize=_REMEMBERED)
def _shape(model: str, fixed: bytes) -> tuple[bytes, str]:
    """(tools and response format with their keys sorted, the shape)."""
    ordered = _sorted(fixed)
    return ordered, _shape_of(model, ordered)


def _sorted(fixed: bytes) -> bytes:
    return orjson.dumps(orjson.loads(fixed), option=orjson.OPT_SORT_KEYS) if fixed else b"[null,null]"


def _shape_of(model: str, ordered: bytes) -> str:
    return _hash(b'["shape",%b,%b' % (_json(model), ordered[1:]))


def _key(model: str, system: str, ordered: bytes) -> str:
    """The digest of ["key", model, system, tools, wanted], of which tools and wanted are written already."""
    return _hash(b'["key",%b,%b,%b' % (_json(model), _json(system), ordered[1:]))


def _identity(model: str, system: str, digest: str, shape: str) -> Identity:
    return Identity(f"task_{digest}", _invent_name(system, digest), model, system, shape)


@lru_cache(maxsize=_REMEMBERED)
def _named(name: str) -> str:
    return f"task_{_digest(['name', name])}"


def _digest(parts: list[Any]) -> str:
    try:
        text = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # nested deeper than orjson writes
        text = " ".join(_tokens(parts)).encode()
    return _hash(text)


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _json(text: str) -> bytes:
    try:
        return orjson.dumps(text)
    except TypeError:  # a lone surrogate
        return ascii(text).encode()


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
