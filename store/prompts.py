"""What the student is shown of a request: one function for training, evaluation and serving.

Today the student sees the request's messages, less what a teacher thought in earlier turns, and its tools as they are. A later
transform (a stripped system prompt, say) goes here, so that no room can show the student anything else than it learned from.
"""

from typing import Any

#: Request fields that vLLM is given as the client sent them; the rest is the teacher's business.
KEPT = (
    "messages", "tools", "tool_choice", "response_format", "stream", "stream_options",
    "max_tokens", "max_completion_tokens", "stop", "n", "logprobs", "top_logprobs",
)  # fmt: skip
THOUGHTS = {"reasoning", "reasoning_content"}  # of a message; pairs do not keep them either

#: Fields that change what the answer must be and that the student is not given.
_BEYOND = ("functions", "function_call", "web_search_options", "audio")


def beyond(request: dict[str, Any]) -> str | None:
    """The name of a field for which the request is the teacher's to answer; None if there is none."""
    found = [name for name in _BEYOND if request.get(name) is not None]
    found += ["modalities"] if request.get("modalities") not in (None, ["text"]) else []
    found += ["logit_bias"] if request.get("logit_bias") else []
    return found[0] if found else None


def for_student(request: dict[str, Any], adapter_id: str, context: int | None = None) -> dict[str, Any]:
    """The body to send to vLLM for a client's (or a pair's) request. Greedy: the student was judged so.

    `context` is the engine's, in tokens: vLLM refuses a request that allows a longer answer than that.
    """
    body = {key: request[key] for key in KEPT if key in request}
    if isinstance(body.get("messages"), list):
        body["messages"] = [_without_thoughts(message) for message in body["messages"]]
    for limit in ("max_tokens", "max_completion_tokens"):
        if context is not None and isinstance(body.get(limit), int):
            body[limit] = min(body[limit], context)
    return {**body, "model": adapter_id, "temperature": 0.0}


def _without_thoughts(message: Any) -> Any:
    if not isinstance(message, dict) or THOUGHTS.isdisjoint(message):
        return message
    return {key: value for key, value in message.items() if key not in THOUGHTS}
