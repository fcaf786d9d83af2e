"""What the student is shown of a request: one function for training, evaluation and serving.

Today the student sees the request's messages, less what a teacher thought in earlier turns, and its tools as they are. A later
transform (a stripped system prompt, say) goes here, so that no room can show the student anything else than it learned from.
"""

from typing import Any

from store import chat
from store.chat import CHAT, RESPONSES, TEXT

#: Request fields that vLLM is given as the client sent them; the rest is the teacher's business.
KEPT = (
    "messages", "tools", "tool_choice", "response_format", "stream", "stream_options",
    "max_tokens", "max_completion_tokens", "stop", "n", "logprobs", "top_logprobs",
)  # fmt: skip
KEPT_OF_RESPONSES = ("instructions", "tools", "tool_choice", "stream", "metadata", "user")
THOUGHTS = {"reasoning", "reasoning_content"}  # of a message; pairs do not keep them either

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


def for_student(request: dict[str, Any], adapter_id: str, context: int | None = None, endpoint: str = CHAT) -> dict[str, Any]:
    """The body to send to vLLM for a client's (or a pair's) request. Greedy: the student was judged so.

    A Responses request is put to vLLM's /v1/responses, both others to its /v1/chat/completions. `context` is the engine's, in
    tokens: vLLM refuses a request that allows a longer answer than that.
    """
    if endpoint == RESPONSES:
        return _for_responses(request, adapter_id, context)
    request = chat.as_chat(endpoint, request)
    body = {key: request[key] for key in KEPT if key in request}
    if isinstance(body.get("messages"), list):
        body["messages"] = [_without_thoughts(message) for message in body["messages"]]
    for limit in ("max_tokens", "max_completion_tokens"):
        if context is not None and isinstance(body.get(limit), int):
            body[limit] = min(body[limit], context)
    return {**body, "model": adapter_id, "temperature": 0.0}


def _for_responses(request: dict[str, Any], adapter_id: str, context: int | None) -> dict[str, Any]:
    """The input goes through the chat view and back, so that vLLM renders what a pair of this request is trained on."""
    body = {key: request[key] for key in KEPT_OF_RESPONSES if request.get(key) is not None}
    body["input"] = chat.items_of(chat.messages_of(request.get("input")))
    if isinstance(text := request.get("text"), dict) and text.get("format") is not None:
        body["text"] = {"format": text["format"]}
    if (limit := request.get("max_output_tokens")) is not None:
        body["max_output_tokens"] = min(limit, context) if context is not None and isinstance(limit, int) else limit
    return {**body, "model": adapter_id, "temperature": 0.0, "store": False}


def _without_thoughts(message: Any) -> Any:
    if not isinstance(message, dict) or THOUGHTS.isdisjoint(message):
        return message
    return {key: value for key, value in message.items() if key not in THOUGHTS}
