"""One shape for the three completion endpoints: what was asked at /v1/completions or /v1/responses, as a chat completion request.

All that names tasks, makes pairs, shows and evaluates works on this view, so that a student learns the same from each endpoint.
Never validates and never raises: `hidden` says where a request holds more than its view shows.
"""

from typing import Any

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
ENDPOINTS = (CHAT, TEXT, RESPONSES)  #: captured and routed

Message = dict[str, Any]
Item = dict[str, Any]  #: of a Responses request's `input` or of an answer's `output`

_TEXT_ONLY = {"prompt", "suffix", "echo", "best_of", "logprobs"}  # chat has no such field, or another under the same name
_SHARED = ("model", "metadata", "user", "stream", "store", "temperature", "top_p", "parallel_tool_calls")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_TEXT_PARTS = ("input_text", "output_text", "text")
_ELSEWHERE = ("previous_response_id", "conversation", "prompt")  # what the teacher saw is kept at the teacher's


def as_chat(endpoint: str, request: dict[str, Any]) -> dict[str, Any]:
    """The request as /v1/chat/completions would have it; the very same object where it is one."""
    if endpoint == RESPONSES:
        return _of_responses(request)
    if endpoint == TEXT:
        kept = {key: value for key, value in request.items() if key not in _TEXT_ONLY}
        prompt = _prompt(request)
        return {**kept, "messages": [] if prompt is None else [{"role": "user", "content": prompt}]}
    return request


def hidden(endpoint: str, request: dict[str, Any]) -> str | None:
    """The name of a field for which the chat view does not show all that was asked; None if it does."""
    if endpoint == RESPONSES:
        return _hidden_in_responses(request)
    if endpoint == TEXT:
        if _prompt(request) is None:
            return "prompt"
        return next((name for name in ("suffix", "echo") if request.get(name)), None)
    return None


def messages_of(items: Any) -> list[Message]:
    """A Responses `input` or `output` as chat messages; what an assistant says and calls in one turn is one, as vLLM has it."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    found: list[Message] = []
    for item in items if isinstance(items, list) else []:
        if not isinstance(item, dict):
            continue
        kind, turn = item.get("type", "message"), found[-1] if found and found[-1]["role"] == "assistant" else None
        if kind == "message":
            message = _message(item)
            if turn is not None and turn["content"] is None and message["role"] == "assistant":
                turn.update(message)
            else:
                found.append(message)
        elif kind in ("function_call", "custom_tool_call"):
            if turn is None:
                found.append(turn := {"role": "assistant", "content": None})
            turn.setdefault("tool_calls", []).append(_call(item))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"))})
    return found


def items_of(messages: list[Message]) -> list[Item]:
    """`messages_of` the other way round, for text and function calls: what is read back is the same messages."""
    found: list[Item] = []
    for message in messages:
        content, calls = message.get("content"), message.get("tool_calls", [])
        if isinstance(content, list):
            content = [{**part, "type": "input_text"} for part in content]
        if message["role"] == "tool":
            found.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": content})
            continue
        if content is not None or not calls:
            found.append({"role": message["role"], "content": content or ""})
        found += [{"type": "function_call", "call_id": call["id"], **call["function"]} for call in calls]
    return found


def _of_responses(request: dict[str, Any]) -> dict[str, Any]:
    view = {key: request[key] for key in _SHARED if key in request}
    instructions = request.get("instructions")
    system = [{"role": "system", "content": instructions}] if instructions and isinstance(instructions, str) else []
    view["messages"] = [*system, *messages_of(request.get("input"))]
    tools, choice = request.get("tools"), request.get("tool_choice")
    if tools:
        view["tools"] = [_tool(tool) for tool in tools] if isinstance(tools, list) else tools
    if choice is not None:
        named = isinstance(choice, dict) and choice.get("type") == "function"
        view["tool_choice"] = {"type": "function", "function": _rest(choice)} if named else choice
    wanted = _format(request)
    if wanted is not None and wanted != {"type": "text"}:
        schema = isinstance(wanted, dict) and wanted.get("type") == "json_schema"
        view["response_format"] = {"type": "json_schema", "json_schema": _rest(wanted)} if schema else wanted
    if request.get("max_output_tokens") is not None:
        view["max_completion_tokens"] = request["max_output_tokens"]
    if isinstance(request.get("reasoning"), dict) and "effort" in request["reasoning"]:
        view["reasoning_effort"] = request["reasoning"]["effort"]
    return view


def _hidden_in_responses(request: dict[str, Any]) -> str | None:
    for name in _ELSEWHERE:
        if request.get(name) is not None:
            return name
    if not isinstance(request.get("instructions"), str | None):
        return "instructions"
    items, tools = request.get("input"), request.get("tools") or []
    if not isinstance(items, str) and not (isinstance(items, list) and all(map(_is_shown, items))):
        return "input"
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool.get("type") == "function" for tool in tools):
        return "tools"
    return None


def _is_shown(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    kind = item.get("type", "message")
    if kind == "message":
        return isinstance(item.get("role"), str) and _is_text(item.get("content"))
    return kind in _ITEMS and (kind != "function_call_output" or _is_text(item.get("output")))


def _is_text(content: Any) -> bool:
    if not isinstance(content, list):
        return isinstance(content, str)
    return all(
        isinstance(part, dict)
        and (part.get("type") == "refusal" or (part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str)))
        for part in content
    )


def _message(item: Item) -> Message:
    role, content = item.get("role"), item.get("content")
    if role != "assistant" or not isinstance(content, list):
        return {"role": role, "content": _content(content)}
    parts = [part for part in content if isinstance(part, dict)]
    texts = [part["text"] for part in parts if part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str)]
    refusals = [part["refusal"] for part in parts if part.get("type") == "refusal" and isinstance(part.get("refusal"), str)]
    message: Message = {"role": role, "content": "".join(texts) if texts or not refusals else None}
    return {**message, "refusal": "".join(refusals)} if refusals else message


def _content(content: Any) -> Any:
    """The parts of a message in chat's words; one part of text alone is a string."""
    if not isinstance(content, list):
        return content
    parts = [_part(part) if isinstance(part, dict) else part for part in content]
    if len(parts) == 1 and isinstance(parts[0], dict) and parts[0].get("type") == "text" and isinstance(parts[0].get("text"), str):
        return parts[0]["text"]
    return parts


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image":
        image = {"url": part.get("image_url"), "detail": part.get("detail"), "file_id": part.get("file_id")}
        return {"type": "image_url", "image_url": {key: value for key, value in image.items() if value is not None}}
    return {"type": "file", "file": _rest(part)} if kind == "input_file" else part


def _call(item: Item) -> dict[str, Any]:
    call_id, name = item.get("call_id"), item.get("name")
    if item.get("type") == "custom_tool_call":
        return {"id": call_id, "type": "custom", "custom": {"name": name, "input": item.get("input")}}
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": item.get("arguments")}}


def _tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {key: value for key, value in _rest(tool).items() if value is not None}}


def _format(request: dict[str, Any]) -> Any:
    text = request.get("text")
    return text.get("format") if isinstance(text, dict) else None


def _rest(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "type"}


def _prompt(request: dict[str, Any]) -> str | None:
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None
