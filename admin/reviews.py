"""What people say of captures: approve, reject, correct, tag. Rows are history; the last that is no tag counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from pydantic import BaseModel
from sqlmodel import Session, col, select

from admin.problems import Invalid, NotFound
from store.chat import as_chat
from store.states import ReviewKind
from store.tables import Capture, Message, Pair, Review

TAG_LENGTH = 50


class ReviewLine(BaseModel, from_attributes=True):
    """One thing a person said of a capture."""

    id: str
    capture_id: str
    kind: ReviewKind
    correction: Message | None
    tags: list[str]
    note: str
    reviewer: str
    created_at: datetime


@dataclass
class Standing:
    """What all of a capture's reviews come to."""

    kind: ReviewKind | None = None  #: of the last that is no tag
    correction: Message | None = None
    tags: list[str] = field(default_factory=list)


def approve(session: Session, target: str, *, by: str, note: str = "") -> Review:
    """The answer is right. `target` is a capture's id or a pair's, here and below. Raises NotFound."""
    return _add(session, find(session, target), ReviewKind.APPROVE, by, note)


def reject(session: Session, target: str, *, by: str, note: str = "") -> Review:
    """The answer is wrong: it is not trained on."""
    return _add(session, find(session, target), ReviewKind.REJECT, by, note)


def correct(session: Session, target: str, answer: str | Message, *, by: str, note: str = "") -> Review:
    """The answer should have been `answer`: text, or an assistant message. Raises Invalid if no student could learn it."""
    capture = find(session, target)
    request = as_chat(capture.endpoint, _json_object(capture.request))
    return _add(session, capture, ReviewKind.CORRECT, by, note, correction=usable(answer, request))


def tag(session: Session, target: str, tags: Sequence[str], *, by: str, note: str = "") -> Review:
    """Put labels on it; its worth is unchanged. Raises Invalid for a bad tag or none."""
    clean = list(dict.fromkeys(each.strip() for each in tags))
    if not clean or not all(0 < len(each) <= TAG_LENGTH and each.isprintable() for each in clean):
        raise Invalid(f"Give at least one tag, each of 1 to {TAG_LENGTH} printable characters.", "bad_tag")
    return _add(session, find(session, target), ReviewKind.TAG, by, note, tags=clean)


def find(session: Session, target: str) -> Capture:
    """The capture with this id, or behind the pair with this id. Raises NotFound."""
    pair = session.get(Pair, target) if target.startswith("pair_") else None
    capture = session.get(Capture, pair.capture_id if pair else target)
    if capture is None:
        raise NotFound(
            f"There is no capture and no pair {target!r}. `stillroom captures` and `stillroom pairs` list them.", "unknown_capture"
        )
    return capture


def history(session: Session, capture_id: str) -> list[ReviewLine]:
    """A capture's reviews, oldest first."""
    return [ReviewLine.model_validate(row) for row in _rows(session, [capture_id])]


def standings(session: Session, capture_ids: Iterable[str]) -> dict[str, Standing]:
    """By capture, what its reviews come to; captures without reviews have an empty standing."""
    found = {capture_id: Standing() for capture_id in capture_ids}
    for row in _rows(session, list(found)):
        standing = found[row.capture_id]
        standing.tags += [each for each in row.tags if each not in standing.tags]
        if row.kind != ReviewKind.TAG:
            standing.kind, standing.correction = row.kind, row.correction
    return found


def usable(answer: str | Message, request: dict[str, Any]) -> Message:
    """`answer` as the assistant message that answers `request`. Raises Invalid with the reason if it cannot be."""
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    if message.get("role", "assistant") != "assistant":
        raise _bad(f"its role is {message['role']!r}, not 'assistant'")
    unknown = {key for key, value in message.items() if value} - {"role", "content", "tool_calls"}
    if unknown:
        raise _bad(f"it has {', '.join(sorted(unknown))}; an answer has content, tool_calls or both")
    content, calls = message.get("content"), message.get("tool_calls")
    if content is not None and not isinstance(content, str):
        raise _bad("its content is not text")
    if calls is not None and not isinstance(calls, list):
        raise _bad("its tool_calls are not a list")
    if not calls and not (content and content.strip()):
        raise _bad("it is empty")
    clean: Message = {"role": "assistant", "content": content or None}
    if calls:
        return {**clean, "tool_calls": [_call(call, request) for call in calls]}
    _check_format(str(content), request)
    return clean


def _call(call: Any, request: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad('a tool call is {"id", "type": "function", "function": {"name", "arguments"}}')
    names = _tool_names(request)
    if function["name"] not in names:
        offered = ", ".join(names) or "no tools"
        raise _bad(f"it calls {function['name']!r}, and the request offers {offered}")
    arguments = function.get("arguments", "{}")
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    if _loads(text) is None:
        raise _bad(f"the arguments of {function['name']!r} are no JSON object")
    call_id = call["id"] if isinstance(call.get("id"), str) else f"call_{function['name']}"
    return {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": text}}


def _tool_names(request: dict[str, Any]) -> list[str]:
    tools = request.get("tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return [str(function.get("name")) for function in functions if isinstance(function, dict)]


def _check_format(content: str, request: dict[str, Any]) -> None:
    wanted = request.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind in {"json_object", "json_schema"} and _loads(content) is None:
        raise _bad(f"the request asks for {kind}, and this is no JSON object")


def _bad(reason: str) -> Invalid:
    return Invalid(f"The correction cannot be used as an answer: {reason}.", "bad_correction")


def _loads(text: str) -> dict[str, Any] | None:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return data if isinstance(data, dict) else None


def _json_object(body: bytes) -> dict[str, Any]:
    return _loads(body.decode(errors="replace")) or {}


def _rows(session: Session, capture_ids: Sequence[str]) -> Sequence[Review]:
    of_these = select(Review).where(col(Review.capture_id).in_(capture_ids))
    return session.exec(of_these.order_by(col(Review.created_at), col(Review.id))).all()


def _add(session: Session, capture: Capture, kind: ReviewKind, by: str, note: str, **more: Any) -> Review:
    review = Review(capture_id=capture.id, kind=kind, note=note, reviewer=by[:100], **more)
    session.add(review)
    session.flush()
    return review
