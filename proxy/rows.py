"""From an exchange in the spool to its row in the database. Off the request's path, and never raises for a strange body."""

from datetime import UTC, datetime
from typing import Any

from proxy import request as requests
from proxy.encoding import decode
from proxy.journal import Logged
from proxy.prices import Prices
from store import answers, bodies
from store.answers import Answer
from store.states import CaptureStatus, Server
from store.tables import Capture
from store.tasks import Identity
from store.templates import NOTHING, Directory


def build(logged: Logged, prices: Prices | None = None, directory: Directory = NOTHING) -> tuple[Identity, Capture]:
    """The capture of an exchange, and its task. What it cost is by the teacher's `prices`; a student's answer costs nothing."""
    begin, end = logged.begin.meta, logged.end.meta if logged.end else {}
    endpoint = begin["endpoint"]
    request = requests.parse(logged.begin.body)
    identity = requests.identify(request, begin["task"], endpoint, directory)
    response, unread = decode(logged.end.body if logged.end else b"", end.get("encoding"))
    stream = bool(end.get("stream", request.get("stream")))
    answer = answers.read(response, stream=stream, endpoint=endpoint) if response and not unread else Answer()
    served_by = Server(end.get("served_by", Server.TEACHER))  # type: ignore[call-arg]
    columns = bodies.columns(request, answer, endpoint)
    cost = None
    if prices is not None and served_by == Server.TEACHER:
        cost = prices.cost(columns["model"], columns["prompt_tokens"], columns["completion_tokens"])
    capture = Capture(
        id=begin["id"],
        created_at=datetime.fromtimestamp(begin["at"], UTC),
        task_id=identity.id,
        endpoint=endpoint,
        status=_status(end, stream, answer),
        served_by=served_by,
        adapter_id=end.get("adapter_id"),
        fallback=bodies.text(end.get("fallback"), 200),
        stream=stream,
        http_status=end.get("http_status"),
        request=logged.begin.body,
        response=response,
        first_byte_ms=end.get("first_byte_ms"),
        duration_ms=end.get("duration_ms"),
        retry_count=bodies.count(begin["retry_count"]) or 0,
        error=bodies.text(end.get("error") or logged.why or unread or answer.error),
        key_id=begin.get("key"),
        teacher=end.get("teacher"),
        cost_usd=cost,
        **columns,
    )
    return identity, capture


def _status(end: dict[str, Any], stream: bool, answer: Answer) -> CaptureStatus:
    status = CaptureStatus(end.get("status", CaptureStatus.INCOMPLETE))  # type: ignore[call-arg]
    if status == CaptureStatus.COMPLETE and answer.error:
        return CaptureStatus.FAILED
    if status == CaptureStatus.COMPLETE and stream and answer.message and not answer.ended and not answer.finish_reason:
        return CaptureStatus.INCOMPLETE
    return status
