"""What the student is shown of a request: one function for training, evaluation and serving.

The student sees the request's messages, less what a teacher thought in earlier turns, and its tools as they are. Where it was
trained without the fixed part of its task's prompts, its adapter has a `Transform`, and the messages go through `apply` first, in
every room: no room can show the student anything else than it learned from.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from store import chat
from store.chat import CHAT, RESPONSES, TEXT

#: Request fields that vLLM is given as the client sent them; the rest is the teacher's business.
KEPT = (
    "messages", "tools", "tool_choice", "response_format", "stream", "stream_options",
    "max_tokens", "max_completion_tokens", "stop", "n", "logprobs", "top_logprobs",
)  # fmt: skip
KEPT_OF_RESPONSES = ("instructions", "tools", "tool_choice", "stream", "metadata", "user")
THOUGHTS = {"reasoning", "reasoning_content"}  # of a message; pairs do not keep them either
TRANSFORM: Final = "transform.json"  #: a transform's file in its adapter's folder
_PLAIN = ("role", "content")
_BEGINNING, _TRIES = 48, 8
VERSION: Final = 1  #: of the transforms that this code reads

#: Fields that change what the answer must be and that the student is not given, each with the values at which it does not.
_BEYOND: dict[str, dict[str, tuple[Any, ...]]] = {
    CHAT: {
        "functions": (None,),
        "function_call": (None,),
        "web_search_options": (None,),
        "audio": (None,),
        "modalities": (None, ["text"]),
        "logit_bias": (None, {}),
    },
    TEXT: {"n": (None, 1), "best_of": (None, 1), "logprobs": (None,), "logit_bias": (None, {})},
    RESPONSES: {
        "background": (None, False),
        "include": (None, []),
        "store": (False,),  # else a later request may name the answer, which the teacher would not know
        "context_management": (None, []),
        "moderation": (None,),
        "top_logprobs": (None, 0),
        "n": (None, 1),
        "logit_bias": (None, {}),
    },
}


class UnseenTemplate(Exception):
    """The request does not have the fixed text that the student was trained without: it is its teacher's to answer."""

    def __str__(self) -> str:
        return "unseen template"


class BadTransform(ValueError):
    """It is no transform, or one of a version that this code does not know."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One of the messages that all requests of a task begin with."""

    role: str
    #: Texts that are always there, in order; what varies stands between each two. One alone: the message is always the same.
    fixed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Transform:
    """What a student is shown instead of its task's whole prompt: of its first messages what varies, then the rest."""

    head: tuple[Piece, ...]
    version: int = VERSION

    def dump(self) -> dict[str, Any]:
        """As JSON has it: `read` makes the same of it."""
        return {"version": self.version, "head": [{**asdict(piece), "fixed": list(piece.fixed)} for piece in self.head]}

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.dump(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read(data: Any) -> Transform:
    """The transform that `dump` wrote. Raises BadTransform."""
    if not isinstance(data, dict) or data.get("version") != VERSION or data.keys() != {"version", "head"}:
        raise BadTransform(f"no transform of version {VERSION}")
    try:
        head = tuple(Piece(**{**piece, "fixed": tuple(piece["fixed"])}) for piece in data["head"])
    except (TypeError, KeyError, AttributeError) as error:
        raise BadTransform(f"a piece of its head is none: {error}") from error
    if not head or not all(isinstance(p.role, str) and p.fixed and all(isinstance(t, str) for t in p.fixed) for p in head):
        raise BadTransform("its head is empty, or has a piece without text")
    return Transform(head)


def apply(transform: Transform | None, messages: Sequence[Any]) -> list[Any]:
    """The messages as the student is shown them. Raises UnseenTemplate unless they begin exactly as the transform says.

    A first message that is always the same is left out; of one that varies, the varying texts stay, a line break between them.
    All that comes behind is the very same objects, content of several parts among them: of such nothing is ever cut.
    """
    if transform is None:
        return list(messages)
    head = transform.head
    if len(messages) < len(head):
        raise UnseenTemplate
    kept: list[Any] = []
    for piece, message in zip(head, messages, strict=False):
        text = _plain_text(message, piece.role)
        if len(piece.fixed) > 1:
            kept.append({"role": piece.role, "content": "\n".join(_varying(piece.fixed, text))})
        elif text != piece.fixed[0]:
            raise UnseenTemplate
    kept += messages[len(head) :]
    if not kept:
        raise UnseenTemplate
    return kept


def beyond(request: dict[str, Any], endpoint: str = CHAT) -> str | None:
    """The name of a field for which the client's request is the teacher's to answer; None if there is none."""
    for name, without in _BEYOND.get(endpoint, {}).items():
        if request.get(name) not in without:
            return name
    if endpoint == RESPONSES:
        choice, text = request.get("tool_choice"), request.get("text")
        if isinstance(choice, dict) and choice.get("type") != "function":
            return "tool_choice"
        if not isinstance(text, dict | None):
            return "text"
    return chat.hidden(endpoint, request)


def for_student(
    request: dict[str, Any],
    adapter_id: str,
    context: int | None = None,
    endpoint: str = CHAT,
    transform: Transform | None = None,
) -> dict[str, Any]:
    """The body to send to vLLM for a client's (or a pair's) request. Greedy: the student was judged so.

    A Responses request is put to vLLM's /v1/responses, both others to its /v1/chat/completions. `context` is the engine's, in
    tokens: vLLM refuses a request that allows a longer answer than that. `transform` is the adapter's. Raises UnseenTemplate.
    """
    if endpoint == RESPONSES:
        return _for_responses(request, adapter_id, context, transform)
    request = chat.as_chat(endpoint, request)
    body = {key: request[key] for key in KEPT if key in request}
    if isinstance(body.get("messages"), list):
        body["messages"] = [_without_thoughts(message) for message in apply(transform, body["messages"])]
    elif transform is not None:
        raise UnseenTemplate
    for limit in ("max_tokens", "max_completion_tokens"):
        if context is not None and isinstance(body.get(limit), int):
            body[limit] = min(body[limit], context)
    return {**body, "model": adapter_id, "temperature": 0.0}


def _for_responses(request: dict[str, Any], adapter_id: str, context: int | None, transform: Transform | None) -> dict[str, Any]:
    """The input goes through the chat view and back, so that vLLM renders what a pair of this request is trained on."""
    body = {key: request[key] for key in KEPT_OF_RESPONSES if request.get(key) is not None}
    if transform is None:
        body["input"] = chat.items_of(chat.messages_of(request.get("input")))
    else:  # what is left of the instructions is a system message, which is how vLLM takes them
        body.pop("instructions", None)
        body["input"] = chat.items_of(apply(transform, chat.as_chat(RESPONSES, request)["messages"]))
    if isinstance(text := request.get("text"), dict) and text.get("format") is not None:
        body["text"] = {"format": text["format"]}
    if (limit := request.get("max_output_tokens")) is not None:
        body["max_output_tokens"] = min(limit, context) if context is not None and isinstance(limit, int) else limit
    return {**body, "model": adapter_id, "temperature": 0.0, "store": False}


def _without_thoughts(message: Any) -> Any:
    if not isinstance(message, dict) or THOUGHTS.isdisjoint(message):
        return message
    return {key: value for key, value in message.items() if key not in THOUGHTS}


def _plain_text(message: Any, role: str) -> str:
    """The content of a message that has this role, one text, and nothing else. Raises UnseenTemplate."""
    if isinstance(message, dict) and message.get("role") == role:
        text = message.get("content")
        if isinstance(text, str) and (len(message) == 2 or not any(message[key] for key in message if key not in _PLAIN)):
            return text
    raise UnseenTemplate


def _varying(fixed: tuple[str, ...], text: str) -> list[str]:
    """What stands between the fixed texts, each taken where it is first found. Raises UnseenTemplate."""
    at, end = len(fixed[0]), len(text) - len(fixed[-1])
    if at > end or not text.startswith(fixed[0]) or not text.endswith(fixed[-1]):
        raise UnseenTemplate
    found = []
    for literal in fixed[1:-1]:
        begin = _find(text, literal, at, end)
        if begin < 0:
            raise UnseenTemplate
        found.append(text[at:begin])
        at = begin + len(literal)
    found.append(text[at:end])
    return found


def _find(text: str, literal: str, begin: int, end: int) -> int:
    """As `text.find`, which takes its time to prepare for a long text to look for: its beginning is looked for first."""
    beginning, at = literal[:_BEGINNING], begin
    for _ in range(_TRIES):
        at = text.find(beginning, at, end)
        if at < 0 or text.startswith(literal, at, end):
            return at
        at += 1
    return text.find(literal, at, end)
