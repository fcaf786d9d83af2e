"""From an exchange in the spool to its row in the database. Off the request's path, and never raises for a strange body."""

from datetime import UTC, datetime
from typing import Any

import orjson

from proxy import request as requests
from proxy.encoding import decode
from proxy.journal import Logged
from store import answers, tasks
from store.answers import Answer
from store.states import CaptureStatus, Server
from store.tables import Capture
from store.tasks import Identity

_INT_MAX = 2**31 - 1


def build(logged: Logged) -> tuple[Identity, Capture]:
    """The capture of an exchange, and its task."""
    begin, end = logged.begin.meta, logged.end.meta if logged.end else {}
    request = requests.parse(logged.begin.body)
    identity = requests.identify(request, begin["task"])
    response, unread = decode(logged.end.body if logged.end else b"", end.get("encoding"))
    stream = bool(end.get("stream", request.get("stream")))
    answer = answers.read(response, stream=stream) if response and not unread else Answer()
    capture = Capture(
        id=begin["id"],
        created_at=datetime.fromtimestamp(begin["at"], UTC),
        task_id=identity.id,
        endpoint=begin["endpoint"],
        status=_status(end, stream, answer),
        served_by=Server(end.get("served_by", Server.TEACHER)),  # type: ignore[call-arg]
        adapter_id=end.get("adapter_id"),
        fallback=_text(end.get("fallback"), 200),
        model=_text(identity.teacher_model, 200) or "",
        stream=stream,
        http_status=end.get("http_status"),
        request=logged.begin.body,
        response=response,
        prompt_text=_text(_prompt(request)) or "",
        answer_text=_text(answers.text_of(answer.message)) or "",
        finish_reason=_text(answer.finish_reason, 40),
        prompt_tokens=_int(answer.prompt_tokens),
        completion_tokens=_int(answer.completion_tokens),
        first_byte_ms=end.get("first_byte_ms"),
        duration_ms=end.get("duration_ms"),
        retry_count=_int(begin["retry_count"]) or 0,
        error=_text(end.get("error") or logged.why or unread or answer.error),
        meta=_meta(request),
    )
    return identity, capture


def _status(end: dict[str, Any], stream: bool, answer: Answer) -> CaptureStatus:
    status = CaptureStatus(end.get("status", CaptureStatus.INCOMPLETE))  # type: ignore[call-arg]
    if status == CaptureStatus.COMPLETE and answer.error:
        return CaptureStatus.FAILED
    if status == CaptureStatus.COMPLETE and stream and answer.message and not answer.ended and not answer.finish_reason:
        return CaptureStatus.INCOMPLETE
    return status


def _prompt(request: dict[str, Any]) -> str:
    messages = request.get("messages")
    asked = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"] if isinstance(messages, list) else []
    return tasks.text_of(asked[-1].get("content")) if asked else ""


def _meta(request: dict[str, Any]) -> dict[str, Any]:
    metadata = request.get("metadata")
    meta = dict(metadata) if isinstance(metadata, dict) and _writable(metadata) else {}
    if isinstance(request.get("user"), str):
        meta["user"] = request["user"]
    return meta


def _writable(value: object) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:  # nested deeper than the database is given JSON
        return False
    return True


def _text(value: object, limit: int | None = None) -> str | None:
    """Text as PostgreSQL takes it: without NUL, not longer than its column."""
    return None if value is None else str(value).replace("\0", "")[:limit]


def _int(value: int | None) -> int | None:
    return None if value is None else min(max(int(value), 0), _INT_MAX)
