"""OpenAI's shapes, as both teachers speak them: a completion, its chunks, server-sent events, errors, a list of models.

Nothing here validates: a recorded completion that does not fit OpenAI's types is served as it is.
"""

import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

DONE = b"data: [DONE]\n\n"
#: Characters of a streamed piece: three or four tokens of English.
_PIECE = 14
_WORDS = re.compile(r"\w+|[^\w\s]")


class Refused(Exception):
    """The request gets an error in OpenAI's shape. Codes: OpenAI's own where it has one."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def app(title: str, headers: dict[str, str], **options: Any) -> FastAPI:
    """An empty application whose every error has OpenAI's shape and these headers."""
    api = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None, **options)

    @api.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        detail = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
        return reply({"error": detail}, headers, status=error.status)

    @api.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        said = f"{error.detail}: {request.method} {request.url.path}"
        status = 404 if error.status_code == 405 else error.status_code
        return await refused(request, Refused(status, said, code="not_found" if status == 404 else None))

    return api


async def body(request: Request) -> dict[str, Any]:
    """The chat.completions body of a request. Raises Refused(400) if it is no JSON object with model and messages."""
    try:
        data = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(data, dict):
        raise Refused(400, "The body of your request must be a JSON object.")
    if not isinstance(data.get("model"), str) or not data["model"]:
        raise Refused(400, "You must provide a model parameter.", param="model")
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Refused(400, "Missing required parameter: 'messages', a list of at least one message.", param="messages")
    return data


def wants_usage(request: dict[str, Any]) -> bool:
    """Whether a streamed request asks for the usage chunk."""
    options = request.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def completion(text: str, *, model: str, prompt: str, fingerprint: str) -> dict[str, Any]:
    """A chat.completion body that says `text`. Usage is approximate: words and punctuation marks, not tokens."""
    asked, said = len(_WORDS.findall(prompt)), len(_WORDS.findall(text))
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        "system_fingerprint": fingerprint,
    }


def chunks(whole: dict[str, Any], *, usage: bool) -> Iterator[dict[str, Any]]:
    """A chat.completion body as the chat.completion.chunk bodies that a client puts together to the same.

    With `usage` the last chunk has the body's usage and no choices, if the body has any.
    """
    head = {key: value for key, value in whole.items() if key not in ("choices", "usage", "object")}
    head = {**head, "object": "chat.completion.chunk"} | ({"usage": None} if usage else {})
    for place, choice in enumerate(whole.get("choices") or []):
        index = choice.get("index", place)
        for delta in _deltas(choice.get("message") or {}):
            yield {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]}
        end = choice.get("finish_reason")
        yield {**head, "choices": [{"index": index, "delta": {}, "logprobs": None, "finish_reason": end}]}
    if usage and whole.get("usage"):
        yield {**head, "choices": [], "usage": whole["usage"]}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def reply(data: dict[str, Any] | bytes, headers: dict[str, str], *, status: int = 200) -> Response:
    """A JSON response."""
    content = data if isinstance(data, bytes) else orjson.dumps(data)
    return Response(content, status_code=status, media_type="application/json", headers=headers)


def stream(events: AsyncIterator[bytes], headers: dict[str, str]) -> Response:
    """A response of server-sent events, sent as they come."""
    return StreamingResponse(events, media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"})


def models(names: list[str], owner: str) -> dict[str, Any]:
    """The body of GET /v1/models."""
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name in names]}


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Role, odd fields, content in parts; content and refusal in pieces; then each tool call: its name, then its arguments."""
    spoken = ("role", "content", "refusal", "tool_calls")
    rest = {key: value for key, value in message.items() if key not in spoken and value is not None}
    content, refusal = message.get("content"), message.get("refusal")
    yield {"role": message.get("role", "assistant"), "content": "" if isinstance(content, str) else content, **rest}
    for key, text in (("content", content), ("refusal", refusal)):
        yield from ({key: piece} for piece in _pieces(text))
    for index, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function") or {}
        arguments = function.get("arguments")
        named = {**call, "index": index, "function": {**function, "arguments": ""}}
        yield {"tool_calls": [named]}
        for piece in _pieces(arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _pieces(text: Any) -> Iterator[str]:
    if isinstance(text, str):
        yield from (text[i : i + _PIECE] for i in range(0, len(text), _PIECE))
