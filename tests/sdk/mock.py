"""A teacher for whole SDKs: it answers every operation they know, and what `x-mock` asks for where it is there."""

import asyncio
import base64
import gzip
import hashlib
from collections import Counter
from typing import Any

import orjson

from tests.proxy.upstream import Exchange, Headers, Seen, Upstream, completion, events
from tests.sdk.examples import Api

_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Zürich"}'}}
_FILE = {"object": "file", "created_at": 1, "filename": "f", "purpose": "batch", "status": "processed"}
TEXT = "It rains in Zürich. 🌧"  #: said where nothing else is asked for
_TELLING: Headers = [("x-request-id", "req_1"), ("openai-version", "2020-10-01"), ("x-ratelimit-remaining-tokens", "77")]


class Mock:
    """Runs from its making to `stop`; `seen` is what has arrived, in order."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._attempts: Counter[str] = Counter()
        self.upstream = Upstream()
        self.upstream.reply = self._reply
        self.unknown: Counter[tuple[str, str]] = Counter()

    @property
    def url(self) -> str:
        return f"{self.upstream.url}/v1"

    @property
    def seen(self) -> list[Seen]:
        return self.upstream.seen

    def stop(self) -> None:
        self.upstream.stop()

    async def _reply(self, exchange: Exchange) -> bool | None:
        seen = exchange.seen
        asked = (seen.header("x-mock") or [""])[0]
        if seen.header("upgrade"):
            return await _websocket(exchange)
        if asked:
            return await self._as_asked(exchange, asked)
        path = seen.target.partition("?")[0].removeprefix("/v1")
        if seen.method == "POST" and seen.target in ("/v1/chat/completions", "/v1/responses"):
            return await self._say(exchange, TEXT)
        operation = self._api.answer(seen.method, path)
        if operation is None:
            self.unknown[(seen.method, path)] += 1
            error = {"message": f"no {seen.method} {path}", "type": "t", "param": None, "code": "x"}
            return await _json(exchange, {"error": error}, 404)
        if seen.body.startswith(b"{") and orjson.loads(seen.body).get("stream") is True:
            return await _stream(exchange, [b"data: " + operation.answer + b"\n\n", b"data: [DONE]\n\n"])
        return await _whole(exchange, operation.answer, 200, [("Content-Type", operation.kind)])

    async def _as_asked(self, exchange: Exchange, asked: str) -> bool | None:
        what, _, argument = asked.partition(" ")
        self._attempts[asked] += 1
        error = {"error": {"message": f"said {asked}", "type": "t", "param": "p", "code": "c"}}
        if what == "flaky":  # "flaky 429 2 NAME": two errors first
            status, failures, _ = argument.split(" ")
            if self._attempts[asked] <= int(failures):
                retry = [("retry-after-ms", "5")] if status == "429" else [("retry-after", "0.01")]
                return await _json(exchange, error, int(status), retry)
        elif what == "error":
            return await _json(exchange, error, int(argument), [("x-should-retry", "false")])
        elif what == "hang":
            return await _hang(exchange)
        elif what == "lost":
            return None
        elif what in ("cut", "failing"):
            head = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
            await exchange.head(200, head)
            for event in events("half", done=False)[:2]:
                await exchange.chunk(event)
            if what == "cut":
                return None
            await exchange.chunk(b"data: " + orjson.dumps(error) + b"\n\n")
            await exchange.write(b"0\r\n\r\n")
            return True
        elif what == "says":
            return await self._say(exchange, argument)
        elif what == "gzip":
            data = gzip.compress(orjson.dumps(completion("packed " * 100)))
            return await _whole(exchange, data, 200, [("Content-Type", "application/json"), ("Content-Encoding", "gzip")])
        elif what in ("tools", "weather"):
            return await self._call(exchange)
        elif what == "pages":
            return await _page(exchange)
        elif what == "empty":
            return await _whole(exchange, b"", 204, [])
        elif what == "redirect" and not exchange.seen.target.endswith("there"):
            return await _whole(exchange, b"", 307, [("Location", "/v1/models/there")])
        elif what == "file":
            return await _whole(exchange, bytes(range(256)) * int(argument), 200, [("Content-Type", "application/octet-stream")])
        elif what == "digest":
            return await _json(exchange, _file(exchange.seen))
        return await _json(exchange, completion("in the end"))

    async def _say(self, exchange: Exchange, text: str) -> bool:
        """Whole or streamed, as the request wants it."""
        path, wants = exchange.seen.target.partition("?")[0], exchange.seen.json.get("stream")
        if path.endswith("/responses"):
            return await (_stream(exchange, response_events(text)) if wants else _json(exchange, response(text)))
        if wants:
            return await _stream(exchange, events(*_parts(text)))
        return await _json(exchange, completion(text))

    async def _call(self, exchange: Exchange) -> bool:
        if not exchange.seen.json.get("stream"):
            message = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
            return await _json(exchange, completion("", message=message, finish_reason="tool_calls"))
        head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "as-served"}
        function = {"name": "get_weather", "arguments": ""}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "tool_calls": [{**_CALL, "index": 0, "function": function}]}]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in _parts('{"city":"Zürich"}')]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
        lines = [b"data: " + orjson.dumps({**head, "choices": [choice]}) + b"\n\n" for choice in choices]
        return await _stream(exchange, [*lines, b"data: [DONE]\n\n"])


def response(text: str) -> dict[str, Any]:
    """A response body."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 3, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5,
    }  # fmt: skip
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "as-served", "output": [item],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage, "error": None, "incomplete_details": None,
        "instructions": None, "metadata": {}, "temperature": 1.0, "top_p": 1.0,
    }  # fmt: skip


def response_events(text: str) -> list[bytes]:
    """The events of a Responses stream."""
    whole = response(text)
    item = whole["output"][0]
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = item["content"][0]
    told: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress", "content": []}},
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in _parts(text)),
        {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return [
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps({**event, "sequence_number": number}))
        for number, event in enumerate(told)
    ]


def _parts(text: str) -> list[str]:
    return [text[i : i + 4] for i in range(0, len(text), 4)]


async def _json(exchange: Exchange, body: Any, status: int = 200, headers: Headers | None = None) -> bool:
    return await _whole(exchange, orjson.dumps(body), status, [("Content-Type", "application/json"), *(headers or [])])


async def _whole(exchange: Exchange, body: bytes, status: int, headers: Headers) -> bool:
    await exchange.head(status, [*headers, *_TELLING, *([] if status == 204 else [("Content-Length", str(len(body)))])])
    await exchange.write(body)
    return True


async def _stream(exchange: Exchange, parts: list[bytes]) -> bool:
    await exchange.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"), *_TELLING])
    for part in parts:
        await exchange.chunk(part)
    await exchange.write(b"0\r\n\r\n")
    return True


async def _page(exchange: Exchange) -> bool:
    """Three pages of two; `after` says behind which one."""
    query = dict(pair.split("=") for pair in exchange.seen.target.partition("?")[2].split("&") if "=" in pair)
    first = int(query.get("after", "file-0").removeprefix("file-")) + 1
    listed = [{**_FILE, "id": f"file-{n}", "bytes": n} for n in (first, first + 1)]
    return await _json(exchange, {"object": "list", "data": listed, "has_more": first < 5, "last_id": listed[-1]["id"]})


def _file(seen: Seen) -> dict[str, Any]:
    """Of an upload: its body's length and digest, the boundary put aside."""
    digest = hashlib.sha256(unbounded(seen)[1]).hexdigest()
    return {**_FILE, "id": digest, "bytes": len(seen.body)}


def unbounded(seen: Seen) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of a request, with what is drawn by chance or belongs to one connection put aside."""
    kind = (seen.header("content-type") or [""])[0]
    boundary = kind.partition("boundary=")[2].strip('"')
    body = seen.body.replace(boundary.encode(), b"BOUNDARY") if boundary else seen.body
    headers = []
    for name, value in seen.headers:
        name = name.lower()
        if name in ("host", "connection", "keep-alive", "upgrade", "sec-websocket-key"):
            continue
        value = value.replace(boundary, "BOUNDARY") if boundary else value
        headers.append((name, "drawn" if name == "idempotency-key" else value))
    return sorted(headers, key=lambda pair: pair[0] == "content-length"), body  # the proxy puts it last


def arrived(mock: Mock) -> list[Any]:
    """Method, target, headers and body of all that has arrived, in an order that those sent at once cannot change."""
    found = [(seen.method, seen.target, *unbounded(seen), seen) for seen in mock.seen]
    at_once = [(seen.header("x-mock") or [""])[0].startswith("says number") for *_, seen in found]
    order = sorted(range(len(found)), key=lambda i: str(found[i][2]) if at_once[i] else "")
    return [found[i][:4] for i in order]


async def _hang(exchange: Exchange) -> bool:
    while await exchange.reader.read(4096):
        pass
    exchange.seen.left.set()
    return False


async def _websocket(exchange: Exchange) -> bool:
    """Sends every text message back, and closes when it is told to."""
    key = exchange.seen.header("sec-websocket-key")[0].encode()
    accept = base64.b64encode(hashlib.sha1(key + _WEBSOCKET).digest()).decode()
    offered = exchange.seen.header("sec-websocket-protocol")
    chosen = [("Sec-WebSocket-Protocol", offered[0].split(",")[0])] if offered else []
    await exchange.head(101, [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept), *chosen])
    reader = exchange.reader
    while True:
        first, second = await reader.readexactly(2)
        length = second & 127
        if length >= 126:
            length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8))
        mask = await reader.readexactly(4)
        data = await reader.readexactly(length)
        text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        size = bytes([len(text)]) if len(text) < 126 else b"\x7f" + len(text).to_bytes(8)
        await exchange.write(bytes([first & 0x8F]) + size + text)
        if first & 15 == 8:
            await asyncio.sleep(0)
            return False
