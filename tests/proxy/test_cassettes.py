"""Recorded exchanges replayed through the proxy: the wire is kept to the byte, and what was answered can be rebuilt.

The recordings are no part of the repository: STILLROOM_DATA names the folder in which wire_openai_chat_cassettes.jsonl.gz lies.
A few exchanges of the same kinds are written out below, and always replayed.
"""

import asyncio
import gzip
import json
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

from store import answers
from store.states import CaptureStatus
from store.tables import Capture
from tests.proxy.conftest import KEY
from tests.proxy.upstream import Exchange, Headers, Upstream

RECORDED = "wire_openai_chat_cassettes.jsonl.gz"
HEADERS = [  # as OpenAI sends them, and what a client may not lose
    ("Date", "Fri, 21 Nov 2025 17:00:00 GMT"), ("x-request-id", "req_7"), ("openai-version", "2020-10-01"),
    ("openai-processing-ms", "41"), ("x-ratelimit-remaining-requests", "9999"), ("x-ratelimit-reset-tokens", "12ms"),
    ("retry-after-ms", "7"), ("Set-Cookie", "a=1; path=/"), ("Set-Cookie", "b=2; path=/"), ("X-Empty", ""), ("Server", "cdn"),
]  # fmt: skip


@dataclass
class Row:
    """One exchange as it was recorded, and how it is to be sent."""

    request: bytes
    body: bytes
    status: int = 200
    stream: bool = False
    cuts: list[int] = field(default_factory=list)  #: where the teacher's answer is cut in pieces
    pause: float = 0.0  #: seconds after each piece
    framing: str = "chunked"  #: or "length", "close"
    encoding: str | None = None


@dataclass
class Said:
    """What an answer says, rebuilt without the code under test."""

    content: Any
    calls: list[tuple[str | None, str, str]]
    finish: str | None
    usage: tuple[int | None, int | None]


class Replay:
    """A teacher that answers each request as it was recorded; `x-row` says which it is."""

    def __init__(self, teacher: Upstream) -> None:
        self.rows: list[Row] = []
        self.arrived: dict[int, bytes] = {}
        teacher.reply = self._reply

    async def _reply(self, exchange: Exchange) -> bool | None:
        number = int(exchange.seen.header("x-row")[0])
        self.arrived[number] = exchange.seen.body
        row = self.rows[number]
        data = gzip.compress(row.body) if row.encoding else row.body
        head: Headers = [("Content-Type", "text/event-stream; charset=utf-8" if row.stream else "application/json"), *HEADERS]
        if row.encoding:
            head.append(("Content-Encoding", row.encoding))
        if row.framing == "length":
            head.append(("Content-Length", str(len(data))))
        elif row.framing == "chunked":
            head.append(("Transfer-Encoding", "chunked"))
        exchange.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await exchange.head(row.status, head)
        for start, end in pairwise([0, *row.cuts, len(data)]):
            await (exchange.chunk if row.framing == "chunked" else exchange.write)(data[start:end])
            await asyncio.sleep(row.pause)
        if row.framing == "chunked":
            await exchange.write(b"0\r\n\r\n")
        return row.framing != "close"


def replay(rows: list[Row], start: Any, teacher: Upstream, captures: Any) -> list[Capture]:
    """Send all through one proxy, check every byte on both sides, and return the captures in the rows' order."""
    replayed = Replay(teacher)
    replayed.rows = rows
    with httpx.Client(base_url=start().url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
        ids = [_exchange(client, replayed, number) for number in range(len(rows))]
    stored = {capture.id: capture for capture in captures(len(rows))}
    for row, id in zip(rows, ids, strict=True):
        capture = stored[id]
        assert (capture.request, capture.response) == (row.request, row.body)
        assert (capture.http_status, capture.stream) == (row.status, row.stream)
    return [stored[id] for id in ids]


def _exchange(client: httpx.Client, replayed: Replay, number: int) -> str:
    row = replayed.rows[number]
    sent = {"Content-Type": "application/json", "x-row": str(number)}
    with client.stream("POST", "/v1/chat/completions", content=row.request, headers=sent) as answer:
        body = b"".join(answer.iter_raw())
    assert replayed.arrived[number] == row.request
    assert answer.status_code == row.status
    assert (gzip.decompress(body) if row.encoding else body) == row.body
    got = [(name.decode(), value.decode()) for name, value in answer.headers.raw]
    expected = [(name.lower(), value) for name, value in HEADERS]
    assert [pair for pair in got if pair in expected] == expected
    added = {name for name, _ in got} - {name for name, _ in expected}
    framed = {"content-length"} if row.framing == "length" else {"transfer-encoding"}
    encoded = {"content-encoding"} if row.encoding else set()
    assert added == {"content-type", "x-stillroom-id", "x-stillroom-served-by", "x-stillroom-task", *framed, *encoded}
    return answer.headers["x-stillroom-id"]


def check(row: Row, capture: Capture) -> bool:
    """The answer is rebuilt as it was; True if openai-python's own accumulation has confirmed it."""
    answer = answers.read(capture.response, stream=capture.stream, endpoint=capture.endpoint)
    said = _streamed(row.body) if row.stream else _whole(row.body)
    if said is None:
        assert answer.error
        assert answer.error == capture.error
        assert capture.status == CaptureStatus.FAILED
        return False
    usage = (answer.prompt_tokens, answer.completion_tokens)
    rebuilt = Said(answer.message.get("content"), _calls(answer.message), answer.finish_reason, usage)
    assert rebuilt == said
    assert (capture.finish_reason, (capture.prompt_tokens, capture.completion_tokens)) == (said.finish, said.usage)
    assert capture.status == CaptureStatus.COMPLETE
    if not row.stream:
        assert answer.message == json.loads(row.body)["choices"][0]["message"]
        return False
    return _confirmed(row.body, said)


def _whole(body: bytes) -> Said | None:
    data = json.loads(body)
    if "choices" not in data or not data["choices"]:
        return None
    choice, usage = data["choices"][0], data.get("usage") or {}
    message = choice["message"]
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return Said(message.get("content"), _calls(message), choice.get("finish_reason"), counts)


def _calls(message: dict[str, Any]) -> list[tuple[str | None, str, str]]:
    called = [(call["id"], call["function"]) for call in message.get("tool_calls") or []]
    return [(id, function["name"], function.get("arguments") or "") for id, function in called]  # one teacher leaves {} out


def _chunks(body: bytes) -> Iterator[dict[str, Any]]:
    for event in body.decode().replace("\r\n", "\n").split("\n\n"):
        data = "\n".join(line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:"))
        if data and data != "[DONE]":
            yield json.loads(data)


def _streamed(body: bytes) -> Said | None:
    """By the rules that OpenAI's API reference gives for the deltas of a stream."""
    text, calls, finish, usage = "", {}, None, (None, None)
    for chunk in _chunks(body):
        if chunk.get("error"):
            return None
        if chunk.get("usage"):
            usage = (chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"])
        for choice in chunk.get("choices") or []:
            if choice["index"] != 0:
                continue
            finish = choice.get("finish_reason") or finish
            delta = choice.get("delta") or {}
            content = delta.get("content") or ""
            # of parts the text counts, not what was thought
            text += content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            for part in delta.get("tool_calls") or []:
                id, name, arguments = calls.get(part.get("index", 0), (None, "", ""))
                called = part.get("function") or {}
                calls[part.get("index", 0)] = (
                    id or part.get("id"), name + (called.get("name") or ""), arguments + (called.get("arguments") or ""),
                )  # fmt: skip
    return Said(text if text or not calls else None, [calls[index] for index in sorted(calls)], finish, usage)


def _confirmed(body: bytes, said: Said) -> bool:
    """Whether openai-python reads it, and then as we do."""
    state: ChatCompletionStreamState[Any] = ChatCompletionStreamState()
    try:
        for chunk in _chunks(body):
            state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
        final = state.current_completion_snapshot
    except (ValidationError, AssertionError, RuntimeError, TypeError, IndexError, AttributeError):
        return False
    message = final.choices[0].message
    calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or []]
    assert (message.content or "", calls, final.choices[0].finish_reason) == (said.content or "", said.calls, said.finish)
    if final.usage:
        assert (final.usage.prompt_tokens, final.usage.completion_tokens) == said.usage
    return True


def _written() -> list[Row]:
    """Exchanges of every kind that is among the recordings."""
    request = '{"model":"gpt-x", "messages": [{"role":"user","content":"Grüße \\u00e9 👋"}],\n\t"top_p":1.0e0, "top_p":1, "x":NaN}'
    usage = {"prompt_tokens": 48, "completion_tokens": 14, "total_tokens": 62, "completion_tokens_details": {"reasoning_tokens": 0}}
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Zürich"}'}}
    texts: list[dict[str, Any]] = [
        {"role": "assistant", "content": "It rains in Zürich 🌧.", "refusal": None, "annotations": []},
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "call_2"}]},
        {"role": "assistant", "content": "4", "reasoning": "2+2", "reasoning_content": "2+2", "extra_content": {"x": {"y": 1}}},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "four"}]},
    ]
    whole = [
        {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": usage, "service_tier": None,
         "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}]}
        for message in texts
    ]  # fmt: skip
    error = {"error": {"message": "Invalid 'messages[3]'.", "type": "invalid_request_error", "param": "messages[3]", "code": None}}
    rows = [Row(request.encode(), json.dumps(body, ensure_ascii=n % 2 == 0, indent=n).encode()) for n, body in enumerate(whole)]
    rows += [Row(request.encode(), json.dumps(error).encode(), status) for status in (400, 401, 404, 429, 500, 503)]
    rows += [Row(request.encode(), json.dumps(whole[0]).encode(), framing=framing) for framing in ("length", "close")]
    rows.append(Row(request.encode(), json.dumps(whole[1]).encode(), encoding="gzip"))
    return rows


def _written_streams() -> list[Row]:
    request = b'{"model":"gpt-x","stream":true,"messages":[{"role":"user","content":"hi"}],"stream_options":{"include_usage":true}}'
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "usage": None, "obfuscation": "jP9abrn9"}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    words = ({"content": word} for word in ("Grü", "ße ", "👋🏽\n\n"))
    text: list[dict[str, Any]] = [{"role": "assistant", "content": "", "refusal": None}, *words, {}]
    called: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "id": None, "function": {"name": None, "arguments": '"Zürich"}'}}]},
        {},
    ]
    bodies = []
    for deltas, finish in ((text, "stop"), (called, "tool_calls")):
        chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks[-1]["choices"][0]["finish_reason"] = finish
        chunks.append({**head, "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
        bodies.append(": OPENROUTER PROCESSING\n\n" + "".join(lines) + "data: [DONE]\n\n")
    error = {**head, "choices": [], "error": {"message": "Provider went away", "code": 502}}
    failed = f": ping\n\ndata: {json.dumps(error)}\n\n"
    rows = [Row(request, body.encode(), stream=True) for body in bodies]
    rows += [Row(request, body.replace("\n\n", "\r\n\r\n").encode(), stream=True) for body in bodies]
    return [*rows, Row(request, (failed + "data: [DONE]\n\n").encode(), stream=True)]


def _recorded(streams: bool) -> list[Row]:
    folder = os.environ.get("STILLROOM_DATA")
    if not folder or not (Path(folder) / RECORDED).exists():
        pytest.skip(f"the recordings are not here: STILLROOM_DATA is to name the folder of {RECORDED}")
    with gzip.open(Path(folder) / RECORDED, "rt", encoding="utf-8") as lines:
        found = [each for each in map(json.loads, lines) if ("response_sse" in each) == streams]
    styles: list[dict[str, Any]] = [{}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 2, "ensure_ascii": False}]
    rows = []
    for number, each in enumerate(found):
        style = styles[number % len(styles)]
        body = each["response_sse"] if streams else json.dumps(each["response"], **style)
        rows.append(Row(json.dumps(each["request"], **style).encode(), body.encode(), each["meta"]["http_status"], streams))
    return rows


def _cut(rows: list[Row]) -> list[Row]:
    """Every stream cut at random places, inside every character of several bytes and every line's end; short ones at each byte."""
    dice = random.Random(7)
    found = []
    for row in rows:
        for body in {row.body, row.body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")}:
            within = (b"\r\n", b"\n\n", b"\n\r")
            awkward = [i for i in range(1, len(body)) if body[i] & 0xC0 == 0x80 or body[i - 1 : i + 1] in within]
            random_ones = sorted(dice.sample(range(1, len(body)), min(40, len(body) - 1)))
            near_end = list(range(len(body) - 24, len(body)))
            found += [
                Row(row.request, body, row.status, True, sorted(dice.sample(awkward, min(200, len(awkward))))),
                Row(row.request, body, row.status, True, random_ones, framing="close"),
                Row(row.request, body, row.status, True, near_end, pause=0.001),
            ]
            if len(body) < 4000:
                found.append(Row(row.request, body, row.status, True, list(range(1, len(body)))))
    return found


def test_written_exchanges_are_kept_to_the_byte_and_can_be_rebuilt(start, teacher, captures):
    rows = _written()
    for row, capture in zip(rows, replay(rows, start, teacher, captures), strict=True):
        check(row, capture)


def test_written_streams_are_kept_to_the_byte_wherever_they_are_cut(start, teacher, captures):
    rows = _written_streams()
    rows += _cut(rows)
    confirmed = [check(row, capture) for row, capture in zip(rows, replay(rows, start, teacher, captures), strict=True)]
    assert sum(confirmed) > 0.7 * len(rows)


def test_recorded_exchanges_are_kept_to_the_byte_and_can_be_rebuilt(start, teacher, captures):
    rows = _recorded(streams=False)
    assert len(rows) == 433
    for row, capture in zip(rows, replay(rows, start, teacher, captures), strict=True):
        check(row, capture)


def test_recorded_streams_are_kept_to_the_byte_wherever_they_are_cut(start, teacher, captures):
    rows = _recorded(streams=True)
    assert len(rows) == 69
    rows += _cut(rows)
    confirmed = [check(row, capture) for row, capture in zip(rows, replay(rows, start, teacher, captures), strict=True)]
    assert sum(confirmed) > 0.7 * len(rows)
