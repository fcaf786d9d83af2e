"""Pairs: captures judged fit, or not, to learn from. One row a capture; who is left out is told why."""

import hashlib
from typing import Any

import orjson
import sqlalchemy as sa
from sqlmodel import Session, col, select

from store import answers
from store.policy import Policy
from store.states import CaptureStatus, PairStatus, Server, Split
from store.tables import Capture, Message, Pair

ENDPOINT = "/v1/chat/completions"
FINISHED = {"stop", "tool_calls", "function_call"}


class Unfit(Exception):
    """Why a capture is not a pair, in a few words for a person."""


def extract(session: Session, task_id: str, policy: Policy, *, limit: int = 500) -> int:
    """Make pairs of the oldest `limit` captures of the task that have none yet. Returns how many were looked at.

    Only complete answers of the teacher are looked at: a student must not learn from itself.
    """
    seen = sa.exists().where(col(Pair.capture_id) == col(Capture.id))
    captures = session.exec(
        select(Capture)
        .where(Capture.task_id == task_id, Capture.served_by == Server.TEACHER, Capture.endpoint == ENDPOINT)
        .where(Capture.status == CaptureStatus.COMPLETE, ~seen)
        .order_by(col(Capture.id))
        .limit(limit)
    ).all()
    found = [judge(capture, policy) for capture in captures]
    known = _known(session, task_id, {pair.content_hash for pair in found if pair.content_hash})
    for pair in found:
        if pair.status == PairStatus.READY and pair.content_hash in known:
            pair.status, pair.reason, pair.split = PairStatus.EXCLUDED, "exact duplicate of an earlier pair", None
        known.add(pair.content_hash)
    session.add_all(found)
    return len(captures)


def judge(capture: Capture, policy: Policy) -> Pair:
    """The capture's pair, READY with its split, or EXCLUDED with its reason. Reads only the capture."""
    pair = Pair(task_id=capture.task_id, capture_id=capture.id, status=PairStatus.EXCLUDED)
    try:
        request = _request(capture.request)
        pair.messages, pair.tools = [_plain(m) for m in request["messages"]], request.get("tools") or None
        pair.response_format = request.get("response_format") or None
        pair.completion = _completion(capture)
    except Unfit as unfit:
        pair.reason = str(unfit)
        return pair
    pair.content_hash = _digest([pair.messages, pair.tools, pair.completion])
    pair.conversation = conversation(capture.task_id, pair.messages, capture.meta)
    pair.status, pair.split = PairStatus.READY, split(pair.conversation, policy.holdout)
    return pair


def conversation(task_id: str, messages: list[Message], meta: dict[str, Any]) -> str:
    """What turns of one session, and equal prompts, have in common: `metadata.conversation`, else the first user message."""
    named = meta.get("conversation")
    first = next((m for m in messages if m.get("role") == "user"), None)
    return _digest([task_id, named if isinstance(named, str) else first])


def split(conversation: str, holdout: float) -> Split:
    """By hash, so that a conversation's rows fall on one side, today and in a year."""
    return Split.HOLDOUT if int(conversation[:8], 16) / 2**32 < holdout else Split.TRAIN


def _request(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unfit("the request is no JSON") from error
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Unfit("the request has no messages")
    if request.get("n") not in (None, 1):
        raise Unfit("more than one answer was asked for")
    for part in (p for m in messages if isinstance(m.get("content"), list) for p in m["content"]):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise Unfit("a message is not text (image, audio or file)")
    return dict(request)


def _completion(capture: Capture) -> Message:
    if capture.http_status != 200:
        raise Unfit(f"the teacher answered {capture.http_status}")
    answer = answers.read(capture.response, stream=capture.stream)
    if answer.error:
        raise Unfit("the answer is an error")
    if not answer.ended:
        raise Unfit("the stream ended early")
    if answer.finish_reason not in FINISHED:
        raise Unfit(f"the answer did not finish: {answer.finish_reason}"[:200])
    if answer.message.get("refusal"):
        raise Unfit("the teacher refused")
    completion = _plain({**answer.message, "role": "assistant"})
    if not isinstance(completion.get("content"), str | None):
        raise Unfit("the answer is not text")
    if not completion.get("content") and not completion.get("tool_calls"):
        raise Unfit("the answer is empty")
    return completion


def _plain(message: Message) -> Message:
    """The fields of a message that a chat template reads; empty ones dropped, so that equal messages hash equal."""
    kept = {key: message[key] for key in ("role", "content", "name", "tool_calls", "tool_call_id") if message.get(key)}
    return {"content": None, **kept} if "tool_calls" in kept else {"content": "", **kept}


def _known(session: Session, task_id: str, hashes: set[str]) -> set[str]:
    """Those of the hashes that the task has a pair of."""
    same = select(Pair.content_hash).where(Pair.task_id == task_id, Pair.status == PairStatus.READY)
    return set(session.exec(same.where(col(Pair.content_hash).in_(hashes))))


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
