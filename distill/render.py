"""Conversations as tokens, exactly as vLLM renders them when it serves.

Training and serving must see the same tokens. vLLM (0.32, vllm/renderers) first brings an OpenAI request's messages
into the form that chat templates expect, then renders text, then tokenizes it without adding special tokens; so does
this file, in the same order.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

Message = dict[str, Any]  #: one OpenAI chat message
Tool = dict[str, Any]  #: one entry of an OpenAI request's `tools`

PART_TEXT = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}
BILLING_HEADER = "x-anthropic-billing-header"  # a line that varies with every request; vLLM drops it from system messages


class Unrenderable(ValueError):
    """The conversation has parts that a text model cannot be given, such as images, or its template refuses it."""


@dataclass(frozen=True)
class Example:
    """What the student is shown, and what it must then write, its end-of-turn token included."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def example(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[Tool] | None, completion: Message) -> Example:
    """One training row. Raises Unrenderable."""
    return Example(prompt_ids(tokenizer, messages, tools), completion_ids(tokenizer, completion, messages, tools))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[Tool] | None = None) -> list[int]:
    """The ids that vLLM's chat endpoint gives the model for these messages. Raises Unrenderable."""
    return _encode(tokenizer, _render(tokenizer, messages, tools, add_generation_prompt=True))


def completion_ids(
    tokenizer: PreTrainedTokenizerBase,
    message: Message,
    messages: list[Message] | None = None,
    tools: list[Tool] | None = None,
) -> list[int]:
    """The assistant `message` as the model must write it after `messages`, up to and with the token at which vLLM stops.

    The template's own text where it continues the prompt and shows the whole answer; else the content, the tool calls
    in hermes form, and the tokenizer's end-of-sequence token. Raises Unrenderable, also where the answer itself
    contains a stop token.
    """
    messages = messages or [{"role": "user", "content": ""}]
    prompt = _render(tokenizer, messages, tools, add_generation_prompt=True)
    whole = _render(tokenizer, [*messages, message], tools, add_generation_prompt=False)
    content, calls = "\n".join(_texts(message.get("content"))), hermes(message)
    continued = whole[len(prompt) :] if whole.startswith(prompt) else ""
    if content.strip() in continued and continued.count("<tool_call>") == (content + calls).count("<tool_call>"):
        ids = _encode(tokenizer, continued)
        ends = [i for i, token in enumerate(ids) if token in stop_ids(tokenizer)]
        # What follows the end of the turn, usually a line break, the model is never asked to write.
        ids = ids[: ends[-1] + 1] if ends else [*ids, tokenizer.eos_token_id]
    else:
        ids = [*_encode(tokenizer, content + calls), tokenizer.eos_token_id]
    if not stop_ids(tokenizer).isdisjoint(ids[:-1]):
        raise Unrenderable("the answer contains the model's own end-of-turn token")
    return ids


def hermes(message: Message) -> str:
    """The message's tool calls in the text form that vLLM's hermes parser reads back; empty without any."""
    functions = [call["function"] for call in _normalise(message, parts=False).get("tool_calls") or []]
    texts = [json.dumps({"name": f["name"], "arguments": f["arguments"]}, ensure_ascii=False) for f in functions]
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens at which vLLM stops: the tokenizer's end of sequence and those of the model's generation_config.json."""
    path = Path(tokenizer.name_or_path) / "generation_config.json"
    listed = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    ends = [listed] if isinstance(listed, int) else listed or []
    return frozenset([tokenizer.eos_token_id, *ends])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[Tool] | None, *, add_generation_prompt: bool
) -> str:
    template = tokenizer.get_chat_template(tools=tools or None)
    conversation = [_normalise(message, parts=_takes_parts(template)) for message in messages]
    if any(m["role"] == "developer" for m in conversation) and not re.search("""["']developer["']""", template):
        conversation = _developer_as_system(conversation)
    try:
        text = tokenizer.apply_chat_template(
            conversation,
            tools=[_tool(tool) for tool in tools] if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise Unrenderable(f"the chat template refuses the conversation: {error}") from error
    assert isinstance(text, str)
    return text


def _normalise(message: Message, *, parts: bool) -> Message:
    """One message as vLLM's `parse_chat_messages` leaves it, content as a list of parts or as one string."""
    role = message["role"]
    texts = _texts(message.get("content"))
    if role == "system":
        texts = [text for text in map(_without_billing, texts) if text is not None]
    joined = "\n".join(texts)
    as_parts = [{"type": "text", "text": text} for text in texts]
    result: Message = {"role": role, "content": as_parts if parts and role != "tool" else joined}
    if role == "assistant":
        if message.get("tool_calls"):
            result["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
        reasoning = message.get("reasoning") if message.get("reasoning") is not None else message.get("reasoning_content")
        if reasoning is not None:
            result |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if role == "tool" and "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        result["name"] = message["name"]
    if role == "developer":
        result["tools"] = message.get("tools")
    return result


def _texts(content: Any) -> list[str]:
    parts = [content] if isinstance(content, str) else content or []
    found = []
    for part in parts:
        kind = "text" if isinstance(part, str) else part.get("type")
        if kind not in PART_TEXT:
            raise Unrenderable(f"content of type {kind!r} cannot be given to a text model")
        text = part if isinstance(part, str) else part.get(PART_TEXT[kind])
        if text is not None:
            found.append(text)
    return found


def _without_billing(text: str) -> str | None:
    return text if not text.startswith(BILLING_HEADER) else text.partition("\n")[2] or None


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments as an object, whatever they were; the keys in the order in which vLLM's validation leaves them."""
    arguments = call["function"].get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError:
            arguments = {}
    function = {"arguments": arguments if isinstance(arguments, dict) else {}, "name": call["function"]["name"]}
    first = {"id": call.get("id"), "function": function, "type": "function"}
    return first | {key: value for key, value in call.items() if key not in first}


def _tool(tool: Tool) -> Tool:
    """A tool as vLLM's own model of it is dumped: known fields only, in its order, missing ones null."""
    function = tool["function"]
    dumped = {key: function.get(key) for key in ("name", "description", "parameters")}
    dumped |= {key: function[key] for key in ("strict", "defer_loading") if function.get(key) is not None}
    return {"type": "function", "function": dumped}


def _developer_as_system(conversation: list[Message]) -> list[Message]:
    """For templates without a developer role: its messages become system ones, and all of those one, in front."""
    roles = ["system" if m["role"] == "developer" else m["role"] for m in conversation]
    if "system" not in roles[1:]:
        first = {key: value for key, value in conversation[0].items() if key != "tools"} | {"role": roles[0]}
        return [first, *conversation[1:]]
    system = [m["content"] for m, role in zip(conversation, roles, strict=True) if role == "system"]
    texts = [c if isinstance(c, str) else "\n".join(part["text"] for part in c) for c in system]
    others = [m for m, role in zip(conversation, roles, strict=True) if role != "system"]
    return [{"role": "system", "content": "\n\n".join(filter(None, texts))}, *others]


@lru_cache(maxsize=32)
def _takes_parts(template: str) -> bool:
    """Whether the template loops over a message's content, and so takes a list of parts; vLLM looks for the same."""
    for loop in _compile_jinja_template(template).environment.parse(template).find_all(nodes.For):
        over = loop.iter
        while isinstance(over, nodes.Filter | nodes.Test) and over.node is not None:
            over = over.node
        if isinstance(over, nodes.Getitem) and isinstance(over.arg, nodes.Slice):
            over = over.node
        if (
            (isinstance(over, nodes.Getattr) and over.attr == "content")
            or (isinstance(over, nodes.Getitem) and isinstance(over.arg, nodes.Const) and over.arg.value == "content")
            or (isinstance(over, nodes.Name) and over.name == "content")
        ):
            return True
    return False
