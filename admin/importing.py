"""Recorded exchanges into captures: OpenAI fine-tuning lines, and recordings as the replayed teacher reads them.

Read line by line; what cannot be used is reported with its line number and reason, the rest is imported. A capture's id is the
hash of its task and its line, so the same line imported again is there already; it sorts before the ids of live traffic, whose
latest rows the gate judges on.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import orjson
from pydantic import BaseModel, Field

from admin.problems import Invalid
from store import answers, audit, bodies, captures, templates
from store import tasks as identity
from store.columns import now
from store.packing import Packer
from store.session import Database
from store.states import CaptureStatus, Server
from store.tables import Capture, Message
from store.tasks import Identity
from store.templates import NOTHING, Directory

BATCH_ROWS, BATCH_BYTES = 500, 16_000_000
LINE_BYTES = 16_000_000  # a longer line is no exchange
REPORTED = 1000  # errors told one by one; more are counted
BOM = b"\xef\xbb\xbf"
SHAPES = (
    'a line is {"messages": [..., {"role": "assistant", ...}]} (OpenAI fine-tuning) or '
    '{"request": {"messages": [...]}, "response": {"choices": [...]}} (a recording)'
)


class LineError(BaseModel):
    """A line that was left out."""

    line: int
    reason: str


class Report(BaseModel):
    """What became of an import."""

    source: str
    imported: int = 0
    duplicates: int = Field(0, description="Lines that had been imported before.")
    failed: int = Field(0, description="Lines that could not be used.")
    errors: list[LineError] = Field([], description=f"The first {REPORTED} of them, with their reasons.")
    tasks: dict[str, int] = Field({}, description="Imported lines by the task's name.")

    def add_error(self, line: int, reason: str) -> None:
        self.failed += 1
        if len(self.errors) < REPORTED:
            self.errors.append(LineError(line=line, reason=reason))


class Unusable(Exception):
    """Why a line is no exchange, in a few words for a person."""


@dataclass(frozen=True)
class Exchange:
    """One usable line."""

    key: str  #: hash of the line
    task: Identity
    own: str  #: the id of the task that it would have if nothing else were known: a line is known by it, whatever is merged
    capture: Capture  #: but for its id and its task


def load(
    db: Database, file: IO[bytes], *, source: str, task: str | None = None, model: str | None = None, by: str = "import"
) -> Report:
    """Import a JSONL file, plain or gzip.

    task: the name or id of the task that all lines belong to; else each line's own, as if it had come through the proxy.
    model: the teacher's model for lines that name none. Raises Invalid if `task` cannot be a task's name.
    """
    if task is not None and not identity.NAME.fullmatch(task):
        raise Invalid(str(identity.BadTaskName(task)), "bad_task_name")
    report = Report(source=source[-200:])
    batch: dict[str, Exchange] = {}
    packer = Packer()
    size = 0
    with db.read() as session:
        directory = templates.read(session)
    for number, line in _lines(file):
        try:
            if isinstance(line, Unusable):
                raise line
            exchange = read(line, source=report.source, task=task, model=model, directory=directory)
        except Unusable as reason:
            report.add_error(number, str(reason))
            continue
        if exchange.key in batch:
            report.duplicates += 1
            continue
        batch[exchange.key] = exchange
        size += len(line)
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            _store(db, list(batch.values()), task, report, packer)
            batch, size = {}, 0
    _store(db, list(batch.values()), task, report, packer)
    with db.begin() as session:
        audit.record(session, by, "import", task or "", report.model_dump(include={"source", "imported", "duplicates", "failed"}))
    return report


def read(
    line: bytes, *, source: str, task: str | None = None, model: str | None = None, directory: Directory = NOTHING
) -> Exchange:
    """The exchange in a line. Raises Unusable."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise Unusable(f"no JSON: {error}") from error
    if not isinstance(row, dict):
        raise Unusable(f"no JSON object; {SHAPES}")
    try:
        if "messages" in row:
            request, response, stream = _tuning_line(row)
        elif "request" in row:
            request, response, stream = _recording(row)
        else:
            raise Unusable(f"neither `messages` nor `request`; {SHAPES}")
        if model and not request.get("model"):
            request["model"] = model
        named, own = (identity.identify(request, task, directory=each) for each in (directory, NOTHING))
        return Exchange(hashlib.sha256(line).hexdigest(), named, own.id, _capture(request, response, stream, source))
    except identity.BadTaskName as error:
        raise Unusable(f"metadata.task: {error}") from error
    except (TypeError, ValueError, AttributeError, RecursionError) as error:  # shapes that nobody thought of, or nested too deep
        raise Unusable(f"it cannot be read: {error}"[:300]) from error


def _tuning_line(row: dict[str, Any]) -> tuple[dict[str, Any], bytes, bool]:
    *asked, last = _messages(row["messages"])
    said = _unweighted(last)
    if said.get("role") != "assistant":
        raise Unusable("the last message is not the assistant's: there is no answer to learn")
    if last.get("weight") == 0:
        raise Unusable("the answer has weight 0: it is not meant to be learned")
    if not asked:
        raise Unusable("there is an answer and no question")
    if not isinstance(said.get("tool_calls") or [], list):
        raise Unusable("`tool_calls` is no list")
    if not (isinstance(said.get("content"), str) and said["content"]) and not said.get("tool_calls"):
        raise Unusable("the answer is empty")
    tools: dict[str, Any] = {key: row[key] for key in ("tools", "tool_choice", "parallel_tool_calls") if key in row}
    request = {"messages": [_unweighted(m) for m in asked], **tools}
    finish = "tool_calls" if said.get("tool_calls") else "stop"
    body = {"object": "chat.completion", "choices": [{"index": 0, "message": said, "finish_reason": finish}]}
    return request, orjson.dumps(body), False


def _recording(row: dict[str, Any]) -> tuple[dict[str, Any], bytes, bool]:
    request, response, events, meta = row["request"], row.get("response"), row.get("response_sse"), row.get("meta")
    if not isinstance(request, dict):
        raise Unusable("`request` is no object")
    _messages(request.get("messages"))
    status = meta.get("http_status", 200) if isinstance(meta, dict) else 200
    if status != 200:
        raise Unusable(f"the teacher answered {status}")
    if isinstance(events, str) and events:
        return request, events.encode(), True
    if not isinstance(response, dict):
        raise Unusable("there is no `response`")
    return request, orjson.dumps(response), False


def _messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise Unusable("`messages` is no list, or an empty one")
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise Unusable("a message is no object with a `role`")
    return messages


def _unweighted(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "weight"}


def _capture(request: dict[str, Any], response: bytes, stream: bool, source: str) -> Capture:
    """A capture, but for its id and its task. Raises Unusable, and whatever a strange shape makes of it."""
    answer = answers.read(response, stream=stream)
    if answer.error:
        raise Unusable(f"the answer is an error: {answer.error}"[:300])
    if not answer.ended:
        raise Unusable("the recorded stream broke off before its [DONE]")
    read = bodies.columns(request, answer)
    return Capture(
        id="",
        created_at=now(),
        task_id="",
        endpoint="/v1/chat/completions",
        status=CaptureStatus.COMPLETE,
        served_by=Server.TEACHER,
        stream=stream,
        http_status=200,
        request=orjson.dumps(request),
        response=response,
        **{**read, "finish_reason": read["finish_reason"] or None, "meta": {**read["meta"], "imported": source}},
    )


def _store(db: Database, batch: list[Exchange], task: str | None, report: Report, packer: Packer) -> None:
    """Write a batch in one transaction; what is there already counts as duplicate."""
    if not batch:
        return
    with db.begin() as session:
        named = identity.find(session, task) if task else None
        rows, names = [], {}
        for exchange in batch:
            owner = named or identity.ensure(session, exchange.task)
            key = hashlib.sha256(f"{named.id if named else exchange.own}\n{exchange.key}".encode()).hexdigest()
            row_id = f"cap_{'0' * 11}{key[:25]}"
            exchange.capture.id, exchange.capture.task_id, names[row_id] = row_id, owner.id, owner.name
            rows.append(exchange.capture)
        session.flush()
        # Another import may be at the same lines: what was written is what the database says.
        written = captures.write(session, rows, packer, tell=True)
    report.imported += len(written)
    report.duplicates += len(batch) - len(written)
    for row_id in written:
        report.tasks[names[row_id]] = report.tasks.get(names[row_id], 0) + 1


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | Unusable]]:
    """Numbered lines, from 1, blank ones left out; never holds more than LINE_BYTES."""
    start = file.read(2)
    file.seek(0)
    source = cast(IO[bytes], gzip.GzipFile(fileobj=file, mode="rb")) if start == b"\x1f\x8b" else file
    number = 0
    try:
        if source.read(len(BOM)) != BOM:
            source.seek(0)
        while line := source.readline(LINE_BYTES + 1):
            number += 1
            if len(line) > LINE_BYTES and not line.endswith(b"\n"):
                while (rest := source.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield number, Unusable(f"longer than {LINE_BYTES // 1_000_000} MB")
            elif line.strip():
                yield number, line.strip()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield number + 1, Unusable(f"the gzip file is cut off or damaged here: {error}")
