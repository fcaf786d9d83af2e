"""Pairs as people see them: listed, searched, and one with its capture, reviews and both answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from admin import captures, pages, reviews, search
from admin.captures import EXCERPT, Answer, CaptureLine
from admin.pages import Page
from admin.problems import NotFound
from store.answers import text_of
from store.states import PairStatus, ReviewKind, Split
from store.tables import Capture, Message, Pair


@dataclass(frozen=True)
class Filter:
    """Which pairs; None and "" leave a side open."""

    task_id: str | None = None
    status: PairStatus | None = None
    split: Split | None = None
    since: datetime | None = None  #: when the pair was made, with a time zone, as `until`
    until: datetime | None = None
    q: str = ""  #: text in the last user message or in the answer
    review: str | None = None  #: a ReviewKind, or search.UNREVIEWED
    tag: str | None = None


class PairLine(BaseModel, from_attributes=True):
    """A pair in a listing."""

    id: str
    created_at: datetime
    task_id: str
    task: str = Field("", description="The task's name.")
    capture_id: str
    status: PairStatus
    reason: str = Field(description="Why it is excluded.")
    left_out: str = Field(description="Why its task's latest dataset goes without it, though it is fit to learn from.")
    split: Split | None
    cluster: str = Field(description="Its near-duplicates and the turns of its conversation have the same one, and the same split.")
    redacted: int = Field(description="Values that were replaced in it by others of their form, as the task's policy says.")
    prompt: str = Field("", description=f"The last user message, its first {EXCERPT} characters.")
    answer: str = Field("", description=f"The answer learned: a correction if there is one. Its first {EXCERPT} characters.")
    review: ReviewKind | None = Field(None, description="The last review that is no tag.")
    tags: list[str] = []


class PairDetail(PairLine):
    """A pair with all that is known of it."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    response_format: dict[str, Any] | None
    completion: Message = Field(description="The teacher's answer, as it is learned if no person corrected it.")
    correction: Message | None = Field(None, description="A person's answer, learned instead.")
    capture: CaptureLine
    reviews: list[reviews.ReviewLine]
    teacher: Answer | None
    student: Answer | None


def listing(session: Session, wanted: Filter, *, after: str | None = None, limit: int = 50) -> Page[PairLine]:
    """A page of pairs, newest first. Raises NotFound for an unknown cursor."""
    long = [defer(getattr(Pair, name)) for name in ("messages", "tools", "response_format")]
    query = select(Pair).options(*long).where(*_conditions(session, wanted))
    if wanted.q:
        query = query.join(Capture, col(Capture.id) == col(Pair.capture_id))
    rows, more = pages.fetch(session, query, Pair, after=after, limit=limit, q=wanted.q)
    return Page(data=_lines(session, rows), has_more=more)


def one(session: Session, pair_id: str) -> PairDetail:
    """A pair with its capture, reviews and both answers. Raises NotFound."""
    pair = session.get(Pair, pair_id)
    if pair is None:
        raise NotFound(f"There is no pair {pair_id!r}. `stillroom pairs` lists them.", "unknown_pair")
    capture = session.get_one(Capture, pair.capture_id)
    teacher, student = captures.sides(session, capture, pair)
    return PairDetail(
        **_lines(session, [pair])[0].model_dump(),
        messages=pair.messages,
        tools=pair.tools,
        response_format=pair.response_format,
        completion=pair.completion,
        correction=reviews.standings(session, [capture.id])[capture.id].correction,
        capture=captures.lines(session, [capture])[0],
        reviews=reviews.history(session, capture.id),
        teacher=teacher,
        student=student,
    )


def _lines(session: Session, pairs: Sequence[Pair]) -> list[PairLine]:
    of = [pair.capture_id for pair in pairs]
    standings = reviews.standings(session, of)
    names = captures.task_names(session, {pair.task_id for pair in pairs})
    prompts = {each.id: each.prompt_text for each in session.exec(select(Capture).where(col(Capture.id).in_(of)))}
    found = []
    for pair in pairs:
        line, standing = PairLine.model_validate(pair), standings[pair.capture_id]
        line.task, line.prompt = names.get(pair.task_id, ""), prompts.get(pair.capture_id, "")[:EXCERPT]
        line.answer = text_of(standing.correction or pair.completion)[:EXCERPT]
        line.review, line.tags = standing.kind, standing.tags
        found.append(line)
    return found


def _conditions(session: Session, wanted: Filter) -> list[Any]:
    found: list[Any] = []
    for column, value in (("task_id", wanted.task_id), ("status", wanted.status), ("split", wanted.split)):
        if value is not None:
            found.append(getattr(Pair, column) == value)
    if wanted.since is not None:
        found.append(col(Pair.created_at) >= wanted.since)
    if wanted.until is not None:
        found.append(col(Pair.created_at) < wanted.until)
    if wanted.review is not None:
        found.append(search.reviewed(wanted.review, col(Pair.capture_id)))
    if wanted.tag is not None:
        found.append(search.tagged(session, wanted.tag, col(Pair.capture_id)))
    return found
