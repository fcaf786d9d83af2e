"""A teacher that answers with recorded real exchanges, found by request.

A recording is JSONL, plain or gzip, a line an exchange: `{"request": chat.completions body, "response": chat.completion
body, "meta": {...}}`. `response_sse` in place of `response` is the raw text of a stream; `meta.http_status` is the status
(200 if absent), `meta.split` a name for a part of the rows. Every answer carries the header `x-stillroom-replay: true`.
"""

import asyncio
import gzip
import hashlib
import logging
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response

from admin.teachers import shapes
from store import answers

logger = logging.getLogger("stillroom.admin")

HEADERS = {"x-stillroom-replay": "true"}
#: What makes two requests the same: whatever model is asked, streamed or not, at any temperature.
KEYED = ("messages", "tools", "response_format", "tool_choice")
#: Line numbers named in a report; the rest is counted.
_NAMED = 20


class RecordingError(ValueError):
    """The file holds no recorded exchange that can be replayed."""


@dataclass(frozen=True)
class Recorded:
    """One recorded answer: a response body as JSON, or the text of a stream."""

    status: int
    body: bytes
    streamed: bool


@dataclass(frozen=True)
class Recording:
    """What a file holds, by request. Requests are kept as hashes only, so memory is that of the answers."""

    answers: dict[bytes, deque[Recorded]] = field(default_factory=dict)
    models: dict[str, None] = field(default_factory=dict)  #: requested models, in order of appearance
    unreadable: list[int] = field(default_factory=list)  #: line numbers, from 1


def build(path: Path, *, latency_ms: float = 0) -> FastAPI:
    """The teacher that replays `path`, each answer after `latency_ms`.

    Several answers to one request are served in turn. Raises RecordingError if there is nothing to replay, OSError if the
    file cannot be opened.
    """
    recording = read(path)
    rows = sum(map(len, recording.answers.values()))

    @asynccontextmanager
    async def announced(_: FastAPI) -> AsyncIterator[None]:
        logger.info("replaying %d recorded answers to %d requests from %s", rows, len(recording.answers), path)
        yield

    app = shapes.app("stillroom: replayed teacher", HEADERS, lifespan=announced)

    @app.get("/v1/models")
    async def models() -> Response:
        return shapes.reply(shapes.models(list(recording.models), "stillroom-replay"), HEADERS)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = await shapes.body(request)
        try:
            turns = recording.answers.get(key(asked))
        except orjson.JSONEncodeError:  # nested too deep to be in a recording
            turns = None
        if turns is None:
            raise shapes.Refused(404, f"This request is not in the recording {path.name}.", code="not_recorded")
        recorded = turns[0]
        turns.rotate(-1)
        await asyncio.sleep(latency_ms / 1000)
        if recorded.status >= 400:
            return shapes.reply(recorded.body, HEADERS, status=recorded.status)
        if asked.get("stream"):
            return shapes.stream(_events(recorded, usage=shapes.wants_usage(asked)), HEADERS)
        return shapes.reply(_whole(recorded), HEADERS)

    return app


def read(path: Path) -> Recording:
    """The recording in a file. Lines that cannot be used are logged with their numbers and left out.

    Raises RecordingError if no line can be used.
    """
    recording = Recording()
    for number, row in _rows(path):
        exchange = _exchange(row) if row else None
        if row is None or exchange is None:
            recording.unreadable.append(number)
            continue
        request, (found_by, recorded) = row["request"], exchange
        recording.answers.setdefault(found_by, deque()).append(recorded)
        if isinstance(request.get("model"), str):
            recording.models[request["model"]] = None
    bad = recording.unreadable
    if not recording.answers:
        raise RecordingError(
            f'{path} has no recorded exchange ({len(bad)} unreadable lines): each line must be {{"request": {{"messages": '
            '[...]}, "response": {...}, "meta": {...}}, plain or gzip'
        )
    if bad:
        named = ", ".join(map(str, bad[:_NAMED])) + (", ..." if len(bad) > _NAMED else "")
        logger.warning("%s: %d unreadable lines left out: %s", path, len(bad), named)
    return recording


def requests(path: Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """The recorded rows in the file's order, for senders: those of one `meta.split`, or all. Unusable lines are left out."""
    for _, row in _rows(path):
        if row and _exchange(row) and split in (None, _meta(row).get("split")):
            yield row


def key(request: dict[str, Any]) -> bytes:
    """What a request is found by: a hash of KEYED, wherever the keys stand in their objects. Absent, null and [] are one.

    Raises orjson.JSONEncodeError for a request that is nested too deep (254 levels).
    """
    kept = {name: request.get(name) or None for name in KEYED}
    return hashlib.sha256(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)).digest()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line numbers with their row; None where the line is no JSON object. Blank lines are no rows."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    number = 0
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _object(line)
    except (EOFError, gzip.BadGzipFile, zlib.error):  # cut off or damaged: what came before is good
        yield number + 1, None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _exchange(row: dict[str, Any]) -> tuple[bytes, Recorded] | None:
    """A row's key and its answer; None if the row has no messages or no answer, or is nested too deep to be written again."""
    request, response, sse = row.get("request"), row.get("response"), row.get("response_sse")
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
        return None
    status = _meta(row).get("http_status")
    status = status if isinstance(status, int) else 200
    try:
        if isinstance(sse, str) and sse:
            return key(request), Recorded(status, sse.encode(), streamed=True)
        return (key(request), Recorded(status, orjson.dumps(response), streamed=False)) if isinstance(response, dict) else None
    except orjson.JSONEncodeError:
        return None


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    meta = row.get("meta")
    return meta if isinstance(meta, dict) else {}


async def _events(recorded: Recorded, *, usage: bool) -> AsyncIterator[bytes]:
    """A recorded stream word for word, or a recorded body in chunks."""
    if recorded.streamed:
        *events, rest = recorded.body.split(b"\n\n")
        for each in events:
            yield each + b"\n\n"
        if rest:
            yield rest
        return
    for chunk in shapes.chunks(orjson.loads(recorded.body), usage=usage):
        yield shapes.event(chunk)
    yield shapes.DONE


def _whole(recorded: Recorded) -> dict[str, Any] | bytes:
    """A recorded body as it is, or a recorded stream put together. Raises Refused(502) if that stream broke off."""
    if not recorded.streamed:
        return recorded.body
    answer = answers.read_stream(recorded.body)
    if answer.error or not answer.finish_reason:
        raise shapes.Refused(502, f"The recorded stream broke off: {answer.error or 'it has no end'}", code="recorded_error")
    first = next((chunk for data in answers.events(recorded.body) if (chunk := _object(data))), {})
    whole: dict[str, Any] = {name: first[name] for name in ("id", "created", "model", "system_fingerprint") if name in first}
    choice = {"index": 0, "message": answer.message, "logprobs": None, "finish_reason": answer.finish_reason}
    whole |= {"object": "chat.completion", "choices": [choice]}
    asked, said = answer.prompt_tokens, answer.completion_tokens
    if asked is not None and said is not None:
        whole["usage"] = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    return whole
