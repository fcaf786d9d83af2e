"""Rendering, against what vLLM 0.32 hands to a chat template (recorded from its own parse_chat_messages) and reads back."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distill import render
from serving.base import CHAT_TEMPLATE
from tests.models import CHATML, tiny_llama

SYSTEM = {"role": "system", "content": "Answer with one JSON object."}
USER = {"role": "user", "content": "Where is my parcel?"}
ANSWER = {"role": "assistant", "content": '{"category":"delivery"}'}
CALL = {"id": "c1", "type": "function", "function": {"name": "find_order", "arguments": '{"order":"A-1","n":[1.0,"ü"]}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "lost"}
TOOL = {"type": "function", "x": 1, "function": {"parameters": {"z": 1, "a": 2}, "name": "find_order", "extra": 1}}

#: Shows a template's whole input, so that a test sees what vLLM's own template would be given.
DUMP = "{{ messages | tojson }}{{ tools | tojson }}{% if add_generation_prompt %}>{% endif %}"
DUMP_PARTS = DUMP + "{% for m in messages %}{% for part in m['content'] %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def given(tokenizer: PreTrainedTokenizerBase, messages: list[Any], tools: list[Any] | None = None) -> tuple[Any, Any]:
    """What the template is given: messages and tools."""
    tokenizer.chat_template = DUMP
    text = tokenizer.decode(render.prompt_ids(tokenizer, messages, tools))
    decoder = json.JSONDecoder()
    shown, end = decoder.raw_decode(text)
    return shown, decoder.raw_decode(text[end:])[0]


def text(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, kind if kind == "refusal" else "text": value}


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ({"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        ({"role": "user", "content": [text("text", "a"), text("text", "b")]}, {"role": "user", "content": "a\nb"}),
        ({"role": "user", "content": "x", "name": "bob"}, {"role": "user", "content": "x", "name": "bob"}),
        ({**ANSWER, "content": None, "refusal": "no"}, {"role": "assistant", "content": ""}),
        ({**ANSWER, "content": "x", "annotations": [], "audio": None}, {"role": "assistant", "content": "x"}),
        ({**ANSWER, "content": [text("refusal", "r"), text("text", "t")]}, {"role": "assistant", "content": "r\nt"}),
        ({**ANSWER, "content": "s", "tool_calls": []}, {"role": "assistant", "content": "s"}),
        (
            {**ANSWER, "content": "s", "reasoning_content": "r"},
            {"role": "assistant", "content": "s", "reasoning": "r", "reasoning_content": "r"},
        ),
        (RESULT, {"role": "tool", "content": "lost", "tool_call_id": "c1"}),
        ({**RESULT, "content": [text("text", "t"), text("text", "u")]}, {**RESULT, "content": "t\nu"}),
        ({"role": "system", "content": "x-anthropic-billing-header: v\nrest"}, {"role": "system", "content": "rest"}),
        ({"role": "system", "content": "x-anthropic-billing-header: v"}, {"role": "system", "content": ""}),
    ],
)
def test_a_message_reaches_the_template_as_vllm_normalises_it(
    tokenizer: PreTrainedTokenizerBase, message: dict[str, Any], wanted: dict[str, Any]
) -> None:
    shown, tools = given(tokenizer, [message])
    assert shown == [wanted]
    assert tools is None


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [('{"b":1,"a":[1.0,"ü"]}', {"b": 1, "a": [1.0, "ü"]}), ("[1]", {}), ("{bad", {}), ("", {}), (None, {}), ({"b": 1}, {"b": 1})],
)
def test_tool_call_arguments_are_an_object_whatever_they_were(
    tokenizer: PreTrainedTokenizerBase, arguments: Any, wanted: dict[str, Any]
) -> None:
    call = {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": arguments}}
    shown, _ = given(tokenizer, [{"role": "assistant", "content": None, "tool_calls": [call]}])
    recorded = {"id": "c", "function": {"arguments": wanted, "name": "f"}, "type": "function", "index": 0}
    assert json.dumps(shown) == json.dumps([{"role": "assistant", "content": "", "tool_calls": [recorded]}])


def test_tools_are_dumped_as_vllm_dumps_them(tokenizer: PreTrainedTokenizerBase) -> None:
    _, tools = given(tokenizer, [USER], [TOOL])
    recorded = {"type": "function", "function": {"name": "find_order", "description": None, "parameters": {"z": 1, "a": 2}}}
    assert json.dumps(tools) == json.dumps([recorded])
    assert given(tokenizer, [USER], [])[1] is None


def test_a_template_that_loops_over_content_is_given_parts(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = DUMP_PARTS
    shown = tokenizer.decode(render.prompt_ids(tokenizer, [USER, RESULT]))
    assert json.JSONDecoder().raw_decode(shown)[0] == [{"role": "user", "content": [text("text", USER["content"])]}, RESULT]


def test_developer_messages_become_one_system_message_in_front(tokenizer: PreTrainedTokenizerBase) -> None:
    developer = {"role": "developer", "content": "Be brief."}
    assert given(tokenizer, [developer, USER])[0] == [{"role": "system", "content": "Be brief."}, USER]
    assert given(tokenizer, [SYSTEM, USER, developer])[0] == [
        {"role": "system", "content": "Answer with one JSON object.\n\nBe brief."},
        USER,
    ]


def test_a_template_that_knows_developers_is_left_with_them(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = DUMP + "{# 'developer' #}"
    shown = tokenizer.decode(render.prompt_ids(tokenizer, [{"role": "developer", "content": "x"}]))
    assert json.JSONDecoder().raw_decode(shown)[0] == [{"role": "developer", "content": "x", "tools": None}]


def test_images_cannot_be_rendered(tokenizer: PreTrainedTokenizerBase) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(render.Unrenderable, match="image_url"):
        render.prompt_ids(tokenizer, [{"role": "user", "content": [picture]}])


def test_what_a_template_refuses_cannot_be_rendered(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(render.Unrenderable, match="roles must alternate"):
        render.prompt_ids(tokenizer, [USER])


@pytest.mark.parametrize("template", [CHATML, CHAT_TEMPLATE])
@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, {**USER, "content": "And now?\n\n  Well?"}]])
def test_prompt_and_completion_are_the_whole_conversations_ids(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: list[Any]
) -> None:
    tokenizer.chat_template = template
    whole = tokenizer.apply_chat_template([*messages, ANSWER], return_dict=False)
    row = render.example(tokenizer, messages, None, ANSWER)
    assert row.completion[-1] == tokenizer.eos_token_id
    after = tokenizer.encode("\n", add_special_tokens=False)  # the template's, after the end of the turn
    assert row.prompt + row.completion + after == whole
    assert tokenizer.decode(row.completion) == '{"category":"delivery"}<|im_end|>'
    assert len(row) == len(whole) - 1


def test_the_base_models_template_is_smollm2s_own_where_there_are_no_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    own = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for messages in ([USER], [SYSTEM, USER], [USER, ANSWER, USER]):
        for prompt in (True, False):
            texts = {
                tokenizer.apply_chat_template(messages, chat_template=t, tokenize=False, add_generation_prompt=prompt)
                for t in (own, CHAT_TEMPLATE)
            }
            assert len(texts) == 1


def as_the_hermes_parser_reads(text: str) -> tuple[str | None, list[dict[str, Any]]]:
    """vLLM 0.32, Hermes2ProToolParser.extract_tool_calls, its regular expression and what it does with the matches."""
    found = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL).findall(text)
    return text[: text.find("<tool_call>")] or None, [json.loads(whole or open_) for whole, open_ in found]


@pytest.mark.parametrize("template", [CHATML, CHAT_TEMPLATE])
@pytest.mark.parametrize("content", [None, "I will look."])
def test_tool_calls_are_written_as_the_hermes_parser_reads_them(
    tokenizer: PreTrainedTokenizerBase, template: str, content: str | None
) -> None:
    tokenizer.chat_template = template
    message = {**CALLING, "content": content, "tool_calls": [CALL, {**CALL, "id": "c2"}]}
    written = tokenizer.decode(render.example(tokenizer, [SYSTEM, USER], [TOOL], message).completion)
    assert written.endswith("</tool_call><|im_end|>")
    said, calls = as_the_hermes_parser_reads(written.removesuffix("<|im_end|>"))
    assert said == content
    assert calls == [{"name": "find_order", "arguments": {"order": "A-1", "n": [1.0, "ü"]}}] * 2


def test_the_base_models_template_shows_the_history_of_tool_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    shown = tokenizer.decode(render.prompt_ids(tokenizer, [USER, CALLING, RESULT], [TOOL]))
    call = '<tool_call>\n{"name": "find_order", "arguments": {"order": "A-1", "n": [1.0, "ü"]}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{call}<|im_end|>\n<|im_start|>tool\nlost<|im_end|>\n" in shown


def test_a_template_that_rewrites_its_history_still_gives_a_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = CHATML.replace("{% for", "{{ messages | length }}{% for", 1)
    assert tokenizer.decode(render.example(tokenizer, [USER], None, ANSWER).completion) == ANSWER["content"] + "<|im_end|>"


def test_stop_tokens_of_the_generation_config_end_a_completion(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = folder / "generation_config.json"
    before = path.read_text()
    path.write_text(json.dumps({"eos_token_id": [0, 2]}))
    try:
        assert render.stop_ids(tokenizer) == {0, 2}
        path.write_text(json.dumps({"eos_token_id": 0}))
        assert render.stop_ids(tokenizer) == {0, 2}
    finally:
        path.write_text(before)


def test_an_answer_with_an_end_of_turn_inside_cannot_be_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(render.Unrenderable, match="end-of-turn"):
        render.completion_ids(tokenizer, {"role": "assistant", "content": "a<|im_end|>b"})
