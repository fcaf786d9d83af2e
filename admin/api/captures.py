"""/api/captures and /api/pairs: look, and review."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from admin import captures, pairs, reviews
from admin.api.needs import After, Caller, Limit, Reads, TaskFilter, Time, Writes, task_id
from admin.pages import Page
from store.states import CaptureStatus, PairStatus, Server, Split
from store.tables import Message, Review

router = APIRouter()
Standing = Literal["approve", "reject", "correct", "tag", "none"]
Q = Annotated[str, Query(description="Text in the last user message or in the answer, whatever its case.")]
ReviewFilter = Annotated[Standing | None, Query(description="The last judgement; tag: any tag; none: no judgement yet.")]
Since = Annotated[Time | None, Query(alias="from")]
Until = Annotated[Time | None, Query(alias="to")]


class Note(BaseModel):
    """Why, for whoever reads the history."""

    note: str = Field("", max_length=10_000)


class Tags(Note):
    tags: list[str]


class Correction(Note):
    answer: str | Message = Field(description="What the answer should have been: its text, or an assistant message.")


@router.get("/captures", tags=["captures"], summary="List, filter and search captures")
def list_captures(
    session: Reads,
    task: TaskFilter = None,
    status: CaptureStatus | None = None,
    served_by: Server | None = None,
    since: Since = None,
    until: Until = None,
    q: Q = "",
    review: ReviewFilter = None,
    tag: str | None = None,
    after: After = None,
    limit: Limit = 50,
) -> Page[captures.CaptureLine]:
    wanted = captures.Filter(task_id(session, task), status, served_by, since, until, q, review, tag)
    return captures.listing(session, wanted, after=after, limit=limit)


@router.get("/captures/{capture_id}", tags=["captures"], summary="One capture, with the teacher's and the student's answer")
def get_capture(session: Reads, capture_id: str) -> captures.CaptureDetail:
    return captures.one(session, capture_id)


@router.get("/pairs", tags=["pairs"], summary="List, filter and search pairs")
def list_pairs(
    session: Reads,
    task: TaskFilter = None,
    status: PairStatus | None = None,
    split: Split | None = None,
    since: Since = None,
    until: Until = None,
    q: Q = "",
    review: ReviewFilter = None,
    tag: str | None = None,
    after: After = None,
    limit: Limit = 50,
) -> Page[pairs.PairLine]:
    wanted = pairs.Filter(task_id(session, task), status, split, since, until, q, review, tag)
    return pairs.listing(session, wanted, after=after, limit=limit)


@router.get("/pairs/{pair_id}", tags=["pairs"], summary="One pair, with the teacher's and the student's answer")
def get_pair(session: Reads, pair_id: str) -> pairs.PairDetail:
    return pairs.one(session, pair_id)


def _line(review: Review) -> reviews.ReviewLine:
    return reviews.ReviewLine.model_validate(review)


@router.post("/captures/{target}/approve", tags=["captures"], summary="The answer is right")
@router.post("/pairs/{target}/approve", tags=["pairs"], summary="The answer is right")
def approve(session: Writes, by: Caller, target: str, body: Note | None = None) -> reviews.ReviewLine:
    return _line(reviews.approve(session, target, by=by, note=body.note if body else ""))


@router.post("/captures/{target}/reject", tags=["captures"], summary="The answer is wrong; never train on it")
@router.post("/pairs/{target}/reject", tags=["pairs"], summary="The answer is wrong; never train on it")
def reject(session: Writes, by: Caller, target: str, body: Note | None = None) -> reviews.ReviewLine:
    return _line(reviews.reject(session, target, by=by, note=body.note if body else ""))


@router.post("/captures/{target}/correct", tags=["captures"], summary="Give the answer that should have been")
@router.post("/pairs/{target}/correct", tags=["pairs"], summary="Give the answer that should have been")
def correct(session: Writes, by: Caller, target: str, body: Correction) -> reviews.ReviewLine:
    return _line(reviews.correct(session, target, body.answer, by=by, note=body.note))


@router.post("/captures/{target}/tag", tags=["captures"], summary="Put labels on it")
@router.post("/pairs/{target}/tag", tags=["pairs"], summary="Put labels on it")
def tag(session: Writes, by: Caller, target: str, body: Tags) -> reviews.ReviewLine:
    return _line(reviews.tag(session, target, body.tags, by=by, note=body.note))
