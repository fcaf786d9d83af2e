"""What the student is shown of a request: one function for training, evaluation and serving.

Today the student sees the request's messages and tools as they are. A later transform (a stripped system prompt, say)
goes here, so that no room can show the student anything else than it learned from.
"""

from typing import Any

#: Request fields that vLLM is given as the client sent them; the rest is the teacher's business.
KEPT = (
    "messages", "tools", "tool_choice", "response_format", "stream", "stream_options",
    "max_tokens", "max_completion_tokens", "stop", "n", "logprobs", "top_logprobs",
)  # fmt: skip


def for_student(request: dict[str, Any], adapter_id: str) -> dict[str, Any]:
    """The body to send to vLLM for a client's (or a pair's) request. Greedy: the student was judged so."""
    body = {key: request[key] for key in KEPT if key in request}
    return {**body, "model": adapter_id, "temperature": 0.0}
