"""How what vLLM says becomes what the client's endpoint says: one dialect an endpoint, a new object for each request.

A student is asked at vLLM's endpoint of the same name; for /v1/completions in chat, because it learned from chat prompts.
"""

from typing import Any, NamedTuple

import orjson

from store import answers, chat
from store.answers import Answer

FINISHED = {"stop", "tool_calls"}
_TELLING = {"response.output_text.delta", "response.refusal.delta", "response.function_call_arguments.delta"}


class NoAnswer(Exception):
    """The student gave no answer that could be sent; the text says why."""


class Unfit(NoAnswer):
    """The student did answer, only not well enough: no fault of its engine."""


class Event(NamedTuple):
    """One event of a stream as the client may see it."""

    data: bytes
    tells: bool = False  #: it has something of the answer, so that the student has begun to speak
    ends: bool = False  #: it is the last


_DONE = Event(b"data: [DONE]\n\n", ends=True)


def of(endpoint: str, request: dict[str, Any]) -> "Chat":
    """The dialect in which a client's request is answered."""
    dialects: dict[str, type[Chat]] = {chat.CHAT: Chat, chat.TEXT: Text, chat.RESPONSES: Responses}
    return dialects[endpoint](request)


class Chat:
    """A chat completion with the client's model in it; what the others have in common. What cannot be sent raises NoAnswer."""

    endpoint = chat.CHAT  #: the client's
    spoken = chat.CHAT  #: vLLM's
    end = "[DONE]"  #: what a whole stream ends with

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request

    def whole(self, body: bytes) -> bytes:
        """The body for the client, where the answer is fit to be one."""
        read = answers.read_json(body, self.spoken)
        if read.error:
            raise NoAnswer(f"its answer cannot be used: {read.error}")
        if read.finish_reason not in FINISHED:
            raise Unfit(f"its finish_reason is {read.finish_reason}")
        if self._asks_json() and not read.message.get("tool_calls") and not _is_json(read.message.get("content")):
            raise Unfit("its answer is not the JSON that response_format asks for")
        return orjson.dumps(self._translated(orjson.loads(body), read))

    def event(self, data: bytes) -> Event | None:
        """The event for the client; None if it is not to see one."""
        if data == b"[DONE]":
            return _DONE
        chunk = _object(data)
        if chunk.get("error") or not isinstance(chunk.get("choices"), list):
            raise NoAnswer("an event of its stream is an error")
        if not chunk["choices"] and not self._wants_usage():
            return None
        return self._chunk(chunk)

    def _translated(self, body: dict[str, Any], read: Answer) -> dict[str, Any]:  # noqa: ARG002 - the others look at what was read
        return {**body, "model": self.request.get("model")}

    def _chunk(self, chunk: dict[str, Any]) -> Event | None:
        chunk["model"] = self.request.get("model")
        return Event(b"data: " + orjson.dumps(chunk) + b"\n\n", any(_tells(choice) for choice in chunk["choices"]))

    def _asks_json(self) -> bool:
        wanted = chat.as_chat(self.endpoint, self.request).get("response_format")
        return isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema")

    def _wants_usage(self) -> bool:
        options = self.request.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))


class Text(Chat):
    """A text completion, out of a chat completion."""

    endpoint = chat.TEXT

    def _translated(self, body: dict[str, Any], read: Answer) -> dict[str, Any]:
        content = read.message.get("content")
        if read.message.get("tool_calls") or not isinstance(content, str):
            raise Unfit("its answer is not text")
        return self._completion(body, [_text_choice(content, read.finish_reason)])

    def _chunk(self, chunk: dict[str, Any]) -> Event | None:
        choices = []
        for choice in chunk["choices"]:
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(delta, dict) or delta.get("tool_calls"):
                raise Unfit("its answer is not text")
            if delta.get("content") or choice.get("finish_reason"):
                choices.append(_text_choice(delta.get("content") or "", choice.get("finish_reason")))
        if not choices and chunk["choices"]:
            return None
        return Event(b"data: " + orjson.dumps(self._completion(chunk, choices)) + b"\n\n", bool(choices))

    def _completion(self, body: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Whole or a chunk: they have one shape."""
        completion = {
            "id": "cmpl-" + str(body.get("id")).removeprefix("chatcmpl-"),
            "object": "text_completion",
            "created": body.get("created"),
            "model": self.request.get("model"),
            "choices": choices,
        }
        return {**completion, "usage": body["usage"]} if body.get("usage") else completion


class Responses(Chat):
    """A response: the client's model in it and in every event that holds one."""

    endpoint = spoken = chat.RESPONSES
    end = "response.completed"

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        self._told = False

    def event(self, data: bytes) -> Event | None:
        event = _object(data)
        kind, response = event.get("type"), event.get("response")
        if not isinstance(kind, str) or kind in ("error", "response.failed") or event.get("error"):
            raise NoAnswer("an event of its stream is an error")
        ends = kind in answers.TERMINAL
        if isinstance(response, dict):
            response["model"] = self.request.get("model")
            if ends and response.get("status") == "incomplete":
                event["type"] = kind = "response.incomplete"  # vLLM calls this end too `completed`
        tells = (
            bool(event.get("delta")) if kind in _TELLING else kind == "response.output_item.done" and _is_call(event.get("item"))
        )
        self._told |= tells
        if ends and not self._told:
            raise Unfit("its answer is empty")
        return Event(b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n", tells, ends)

    def _translated(self, body: dict[str, Any], read: Answer) -> dict[str, Any]:
        if not read.message.get("content") and not read.message.get("tool_calls"):
            raise Unfit("its answer is empty")
        return super()._translated(body, read)


def _object(data: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise NoAnswer("an event of its stream is no JSON") from error
    if not isinstance(event, dict):
        raise NoAnswer("an event of its stream is an error")
    return event


def _text_choice(text: str, finish: Any) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


def _tells(choice: Any) -> bool:
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(delta, dict):
        return False
    return bool(delta.get("content") or delta.get("tool_calls") or delta.get("refusal") or choice.get("finish_reason"))


def _is_call(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "function_call"


def _is_json(content: Any) -> bool:
    try:
        orjson.loads(content)
    except (orjson.JSONDecodeError, TypeError):
        return False
    return True
