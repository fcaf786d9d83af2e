"""Captures as people see them: listed, searched, and one with the teacher's and the student's answer side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from admin import pages, reviews, search
from admin.pages import Page
from store import answers
from store.states import CaptureStatus, PairStatus, ReviewKind, Server, Split
from store.tables import Capture, Evaluation, EvaluationItem, Message, Pair, Task

EXCERPT = 300  # characters of a prompt or an answer in a listing


@dataclass(frozen=True)
class Filter:
    """Which captures; None and "" leave a side open."""

    task_id: str | None = None
    status: CaptureStatus | None = None
    served_by: Server | None = None
    since: datetime | None = None  #: with a time zone, as `until`
    until: datetime | None = None
    q: str = ""  #: text in the last user message or in the answer
    review: str | None = None  #: a ReviewKind, or search.UNREVIEWED
    tag: str | None = None


class CaptureLine(BaseModel, from_attributes=True):
    """A capture in a listing."""

    id: str
    created_at: datetime
    task_id: str
    task: str = Field("", description="The task's name.")
    endpoint: str
    status: CaptureStatus
    served_by: Server
    adapter_id: str | None
    fallback: str | None = Field(description="Why the student did not answer a routed request.")
    model: str
    stream: bool
    http_status: int | None
    prompt: str = Field("", description=f"The last user message, its first {EXCERPT} characters.")
    answer: str = Field("", description=f"The answer, its first {EXCERPT} characters.")
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    first_byte_ms: float | None
    duration_ms: float | None
    error: str | None
    meta: dict[str, Any]
    review: ReviewKind | None = Field(None, description="The last review that is no tag.")
    tags: list[str] = []


class Answer(BaseModel):
    """What the teacher or the student said to a request."""

    adapter_id: str | None = Field(None, description="The student that said it.")
    message: Message | None
    finish_reason: str | None = None
    error: str | None = None
    live: bool = Field(description="Whether the client got it; else it was given in an evaluation.")
    agrees: bool | None = Field(None, description="Whether it agrees with the teacher's, where that was judged.")
    latency_ms: float | None = None


class PairOf(BaseModel, from_attributes=True):
    """The pair a capture became."""

    id: str
    status: PairStatus
    reason: str
    left_out: str
    split: Split | None


class CaptureDetail(CaptureLine):
    """A capture with all that is known of it."""

    request: Any = Field(description="The request's body; its text, if it is no JSON.")
    response: Any = Field(description="The answer's body; its text, if it is no JSON; of a stream, the deltas put together.")
    pair: PairOf | None
    reviews: list[reviews.ReviewLine]
    teacher: Answer | None
    student: Answer | None


def listing(session: Session, wanted: Filter, *, after: str | None = None, limit: int = 50) -> Page[CaptureLine]:
    """A page of captures, newest first. Raises NotFound for an unknown cursor."""
    query = select(Capture).where(*_conditions(session, wanted))
    rows, more = pages.fetch(session, query, Capture, after=after, limit=limit, q=wanted.q)
    return Page(data=lines(session, rows), has_more=more)


def lines(session: Session, captures: Sequence[Capture]) -> list[CaptureLine]:
    """Captures' lines with their tasks' names and standings."""
    standings = reviews.standings(session, [capture.id for capture in captures])
    names = task_names(session, {capture.task_id for capture in captures})
    found = []
    for capture in captures:
        line = CaptureLine.model_validate(capture)
        line.task = names.get(capture.task_id, "")
        line.prompt, line.answer = capture.prompt_text[:EXCERPT], capture.answer_text[:EXCERPT]
        line.review, line.tags = standings[capture.id].kind, standings[capture.id].tags
        found.append(line)
    return found


def one(session: Session, capture_id: str) -> CaptureDetail:
    """A capture with its bodies, reviews, pair and both answers; a pair's id finds its capture. Raises NotFound."""
    capture = reviews.find(session, capture_id)
    pair = session.exec(select(Pair).where(Pair.capture_id == capture.id)).first()
    teacher, student = sides(session, capture, pair)
    return CaptureDetail(
        **lines(session, [capture])[0].model_dump(),
        request=_decoded(capture.request),
        response=_read(capture) if capture.stream else _decoded(capture.response),
        pair=PairOf.model_validate(pair) if pair else None,
        reviews=reviews.history(session, capture.id),
        teacher=teacher,
        student=student,
    )


def sides(session: Session, capture: Capture, pair: Pair | None) -> tuple[Answer | None, Answer | None]:
    """(the teacher's answer, the student's): one is what the client got, the student's else comes from its latest evaluation."""
    read = answers.read(capture.response, stream=capture.stream, endpoint=capture.endpoint)
    live = Answer(
        adapter_id=capture.adapter_id,
        message=read.message or None,
        finish_reason=read.finish_reason,
        error=capture.error or read.error,
        live=True,
        latency_ms=capture.duration_ms,
    )
    if capture.served_by == Server.STUDENT:
        return None, live
    return live, _evaluated(session, pair) if pair else None


def task_names(session: Session, task_ids: set[str]) -> dict[str, str]:
    """Names by id."""
    return dict(session.exec(select(Task.id, Task.name).where(col(Task.id).in_(task_ids))).all())


def _evaluated(session: Session, pair: Pair) -> Answer | None:
    found = session.exec(
        select(EvaluationItem, Evaluation.adapter_id)
        .join(Evaluation, col(Evaluation.id) == col(EvaluationItem.evaluation_id))
        .where(EvaluationItem.pair_id == pair.id)
        .order_by(col(Evaluation.created_at).desc(), col(Evaluation.id).desc())
    ).first()
    if found is None:
        return None
    item, adapter_id = found
    return Answer(
        adapter_id=adapter_id, message=item.s, error=item.error, live=False, agrees=item.agrees, latency_ms=item.latency_ms
    )


def _conditions(session: Session, wanted: Filter) -> list[Any]:
    found: list[Any] = []
    for column, value in (("task_id", wanted.task_id), ("status", wanted.status), ("served_by", wanted.served_by)):
        if value is not None:
            found.append(getattr(Capture, column) == value)
    if wanted.since is not None:
        found.append(col(Capture.created_at) >= wanted.since)
    if wanted.until is not None:
        found.append(col(Capture.created_at) < wanted.until)
    if wanted.review is not None:
        found.append(search.reviewed(wanted.review, col(Capture.id)))
    if wanted.tag is not None:
        found.append(search.tagged(session, wanted.tag, col(Capture.id)))
    return found


def _decoded(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")


def _read(capture: Capture) -> dict[str, Any]:
    read = answers.read_stream(capture.response, capture.endpoint)
    usage = {"prompt_tokens": read.prompt_tokens, "completion_tokens": read.completion_tokens}
    message, finish = read.message, read.finish_reason
    return {"message": message, "finish_reason": finish, "usage": usage, "error": read.error, "ended": read.ended}
