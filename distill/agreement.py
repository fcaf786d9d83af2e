"""Agreement: one yes or no for two answers, by the kind of output (DECISIONS, section 1).

Free text is recognised but not judged here: that takes a judge, which this version does not have.
"""

import json
import math
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from store.answers import text_of
from store.tables import Message

LABEL_CHARACTERS = 80
LABEL_DISTINCT = 0.5  # of the rows


class Kind(StrEnum):
    LABEL = "label"  #: short answers, few distinct values
    JSON = "json"  #: every answer is a JSON object or array, or the request asked for JSON
    TOOLS = "tools"  #: some answer calls a tool
    TEXT = "text"  #: anything else


def detect(answers: Sequence[Message], response_formats: Sequence[dict[str, Any] | None]) -> Kind:
    """The kind of a task's output, from the teacher's answers and what the requests asked for."""
    if any(a.get("tool_calls") for a in answers):
        return Kind.TOOLS
    asked = any((f or {}).get("type") in {"json_object", "json_schema"} for f in response_formats)
    texts = [text_of(a) for a in answers]
    if asked or (texts and all(isinstance(_parse(t), dict | list) for t in texts)):
        return Kind.JSON
    short = all(len(t) <= LABEL_CHARACTERS for t in texts)
    if short and len({_normal(t) for t in texts}) <= max(2, LABEL_DISTINCT * len(texts)):
        return Kind.LABEL
    return Kind.TEXT


def agree(kind: Kind, x: Message | None, t: Message) -> bool:
    """Whether answer `x` says what the teacher's answer `t` says. No answer agrees with nothing."""
    if x is None:
        return False
    try:
        return _agree(kind, x, t)
    except RecursionError:  # one of them is nested some hundred times: nobody's answer
        return False


_UNPARSED = object()


def _agree(kind: Kind, x: Message, t: Message) -> bool:
    if kind is Kind.TOOLS:
        return _same_calls(_calls(x), _calls(t)) if t.get("tool_calls") else not x.get("tool_calls") and _same_text(x, t)
    if kind is Kind.JSON:
        left, right = _parse(text_of(x)), _parse(text_of(t))
        return left is not _UNPARSED and _same(left, right) if right is not _UNPARSED else _same_text(x, t)
    return _same_text(x, t)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _UNPARSED


def _same(x: Any, t: Any) -> bool:
    """JSON values alike: types strict, numbers within 1e-6 relative, object keys in any order."""
    if isinstance(x, bool) or isinstance(t, bool) or x is None or t is None:
        return x is t
    if isinstance(x, int | float) and isinstance(t, int | float):
        return x == t or _close(x, t)
    if isinstance(x, dict) and isinstance(t, dict):
        return x.keys() == t.keys() and all(_same(x[key], t[key]) for key in t)
    if isinstance(x, list) and isinstance(t, list):
        return len(x) == len(t) and all(map(_same, x, t))
    if isinstance(x, str) and isinstance(t, str):
        return unicodedata.normalize("NFC", x) == unicodedata.normalize("NFC", t)
    return False


def _close(x: float, t: float) -> bool:
    try:
        return math.isclose(x, t, rel_tol=1e-6)
    except OverflowError:  # an integer beyond every float
        return False


def _same_calls(x: list[Any], t: list[Any]) -> bool:
    """Each call of one has its like in the other, in whatever order: parallel calls may come in any."""
    left = [*x]
    for call in t:
        like = next((at for at, other in enumerate(left) if _same(other, call)), None)
        if like is None:
            return False
        left.pop(like)
    return not left


def _calls(message: Message) -> list[Any]:
    """Tool calls as JSON values: [name, arguments], the arguments parsed where they can be; what is of another shape as it is."""
    calls = message.get("tool_calls") or []
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            found.append(call)
            continue
        arguments = function.get("arguments") or "{}"
        parsed = _parse(arguments) if isinstance(arguments, str) else arguments
        found.append([function.get("name"), arguments if parsed is _UNPARSED else parsed])
    return found


def _same_text(x: Message, t: Message) -> bool:
    return _normal(text_of(x)) == _normal(text_of(t))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().casefold()
