"""Pairs: captures judged fit, or not, to learn from. One row a capture; who is left out is told why."""

import hashlib
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from store import answers, chat
from store.policy import Policy
from store.states import CaptureStatus, PairStatus, ReviewKind, Server, Split
from store.tables import Capture, Message, Pair, Review

FINISHED = {"stop", "tool_calls", "function_call"}


class Unfit(Exception):
    """Why a capture is not a pair, in a few words for a person."""


def extract(session: Session, task_id: str, policy: Policy, *, limit: int = 500) -> int:
    """Make pairs of the oldest `limit` captures of the task that have none yet. Returns how many were looked at.

    Only complete answers of the teacher are looked at, and captures whose answer a person has corrected since: a student must not
    learn from itself.
    """
    captures = session.exec(_unseen(task_id).limit(limit)).all() or session.exec(_corrected(task_id).limit(limit)).all()
    corrections = _corrections(session, [capture.id for capture in captures])
    for old in session.exec(select(Pair).where(col(Pair.capture_id).in_([capture.id for capture in captures]))):
        session.delete(old)  # was left out before its answer was corrected
    session.flush()
    found = []
    for capture in captures:
        review = corrections.get(capture.id)
        pair = judge(capture, policy, review.correction if review else None)
        pair.created_at = max(pair.created_at, review.created_at) if review else pair.created_at  # lest it is looked at for ever
        found.append(pair)
    _place(session, task_id, [pair for pair in found if pair.status == PairStatus.READY])
    session.add_all(found)
    return len(captures)


def judge(capture: Capture, policy: Policy, correction: Message | None = None) -> Pair:
    """The capture's pair, READY with its split, or EXCLUDED with its reason. Reads only the capture, or a person's correction."""
    pair = Pair(task_id=capture.task_id, capture_id=capture.id, status=PairStatus.EXCLUDED)
    try:
        request = _request(capture.request, capture.endpoint)
        pair.messages, pair.tools = [_plain(m) for m in request["messages"]], request.get("tools") or None
        pair.response_format = request.get("response_format") or None
        pair.completion = _fit(correction) if correction else _completion(capture)
        pair.prompt_hash = _digest([_anonymous(pair.messages), pair.tools])
        pair.content_hash = _digest([_anonymous(pair.messages), pair.tools, _anonymous([pair.completion])])
        pair.conversation = conversation(capture.task_id, pair.messages, capture.meta)
    except Unfit as unfit:
        pair.reason = str(unfit)[:200]
        return pair
    except orjson.JSONEncodeError:
        return Pair(task_id=pair.task_id, capture_id=pair.capture_id, status=pair.status, reason="its JSON is nested too deeply")
    pair.status, pair.split = PairStatus.READY, split(pair.conversation, policy.holdout)
    return pair


def conversation(task_id: str, messages: list[Message], meta: dict[str, Any]) -> str:
    """What turns of one session, and equal prompts, have in common: `metadata.conversation`, else the first user message."""
    named = meta.get("conversation")
    first = next((m for m in messages if m.get("role") == "user"), None)
    return _digest([task_id, named if isinstance(named, str) else first])


def split(conversation: str, holdout: float) -> Split:
    """A new conversation's side, by hash. Its later turns go where it is: `extract` sees to that."""
    return Split.HOLDOUT if int(conversation[:8], 16) / 2**32 < holdout else Split.TRAIN


def _request(body: bytes, endpoint: str) -> dict[str, Any]:
    """The request as chat has it, whatever the endpoint: a pair is a chat pair."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unfit("the request is no JSON") from error
    if isinstance(request, dict):
        if field := chat.hidden(endpoint, request):
            raise Unfit(f"its {field} cannot be shown to a student")
        request = chat.as_chat(endpoint, request)
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Unfit("the request has no messages")
    if not all(isinstance(m.get("role"), str) for m in messages):
        raise Unfit("a message has no role")
    if request.get("n") not in (None, 1):
        raise Unfit("more than one answer was asked for")
    if not isinstance(request.get("response_format") or {}, dict):
        raise Unfit("its response_format is no object")
    tools = request.get("tools") or []
    if not isinstance(tools, list) or not all(_is_function(tool) for tool in tools):
        raise Unfit("a tool is no function")
    for part in (p for m in messages if isinstance(m.get("content"), list) for p in m["content"]):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Unfit("a message is not text (image, audio or file)")
    for message in messages:
        if not isinstance(message.get("content"), str | list | None):
            raise Unfit("a message is not text")
        _check_calls(message)
    return dict(request)


def _completion(capture: Capture) -> Message:
    if capture.served_by != Server.TEACHER or capture.status != CaptureStatus.COMPLETE:
        raise Unfit("it is not a whole answer of the teacher")
    if capture.http_status != 200:
        raise Unfit(f"the teacher answered {capture.http_status}")
    answer = answers.read(capture.response, stream=capture.stream, endpoint=capture.endpoint)
    if answer.error:
        raise Unfit("the answer is an error")
    if not answer.ended:
        raise Unfit("the stream ended early")
    if answer.finish_reason not in FINISHED:
        raise Unfit(f"the answer did not finish: {answer.finish_reason}")
    if answer.message.get("refusal"):
        raise Unfit("the teacher refused")
    return _fit(answer.message)


def _fit(answer: Message) -> Message:
    completion = _plain({**answer, "role": "assistant"})
    if not isinstance(completion.get("content"), str | None):
        raise Unfit("the answer is not text")
    if not completion.get("content") and not completion.get("tool_calls"):
        raise Unfit("the answer is empty")
    _check_calls(completion)
    return completion


def _check_calls(message: Message) -> None:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(_is_function(call) for call in calls):
        raise Unfit("a tool call is not of a function")
    if not all(isinstance(call["function"].get("arguments", ""), str) for call in calls):
        raise Unfit("a tool call's arguments are not text")


def _is_function(entry: Any) -> bool:
    """Whether a tool, or a call of one, is of the only kind that a chat template and vLLM's parser know."""
    function = entry.get("function") if isinstance(entry, dict) and entry.get("type", "function") == "function" else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _plain(message: Message) -> Message:
    """The fields of a message that a chat template reads; empty ones dropped, so that equal messages hash equal."""
    kept = {key: message[key] for key in ("role", "content", "name", "tool_calls", "tool_call_id") if message.get(key)}
    return {"content": None, **kept} if "tool_calls" in kept else {"content": "", **kept}


def _anonymous(messages: list[Message]) -> list[Message]:
    """Without the ids of tool calls: they are drawn anew each time."""
    return [
        {key: [_without(call, "id") for call in value] if key == "tool_calls" else value for key, value in each.items()}
        for each in (_without(message, "tool_call_id") for message in messages)
    ]


def _without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


def _place(session: Session, task_id: str, pairs: list[Pair]) -> None:
    """Put new pairs, oldest first, on their side: a conversation stays where it began, whatever the policy says by now.

    Left out is what the task has already, and a prompt that is known on the other side.
    """
    contents = _sides(session, task_id, Pair.content_hash, {pair.content_hash for pair in pairs})
    prompts = _sides(session, task_id, Pair.prompt_hash, {pair.prompt_hash for pair in pairs})
    conversations = _sides(session, task_id, Pair.conversation, {pair.conversation for pair in pairs})
    for pair in pairs:
        side = conversations.get(pair.conversation, pair.split)
        if pair.content_hash in contents:
            pair.status, pair.reason, pair.split = PairStatus.EXCLUDED, "exact duplicate of an earlier pair", None
        elif prompts.get(pair.prompt_hash, side) != side:
            reason = "another conversation has the same prompt on the other side of the split"
            pair.status, pair.reason, pair.split = PairStatus.EXCLUDED, reason, None
        else:
            pair.split = side
            contents[pair.content_hash] = prompts[pair.prompt_hash] = conversations[pair.conversation] = side


def _sides(session: Session, task_id: str, column: Any, values: set[str]) -> dict[str, Split | None]:
    """On which side the task's pairs with these values are; of the values that no pair has, nothing."""
    known = select(column, Pair.split).where(Pair.task_id == task_id, Pair.status == PairStatus.READY, column.in_(values))
    return dict(session.exec(known.distinct()).all())


def _unseen(task_id: str) -> SelectOfScalar[Capture]:
    """The teacher's complete answers that have no pair, oldest first."""
    seen = sa.exists().where(col(Pair.capture_id) == col(Capture.id))
    return (
        select(Capture)
        .where(Capture.task_id == task_id, Capture.served_by == Server.TEACHER, col(Capture.endpoint).in_(chat.ENDPOINTS))
        .where(Capture.status == CaptureStatus.COMPLETE, ~seen)
        .order_by(col(Capture.id))
    )


def _corrected(task_id: str) -> SelectOfScalar[Capture]:
    """Captures whose last review is a correction, and that have no pair or one left out as unfit before that, oldest first."""
    later = aliased(Review)
    last = ~sa.exists().where(
        col(later.capture_id) == col(Review.capture_id),
        col(later.kind) != ReviewKind.TAG,
        col(later.created_at) > col(Review.created_at),
    )
    # One left out as a duplicate has a content hash: the correction counts for the pair it duplicates.
    settled = sa.exists().where(
        col(Pair.capture_id) == col(Review.capture_id),
        sa.or_(col(Pair.content_hash) != "", col(Pair.created_at) >= col(Review.created_at)),
    )
    corrected = select(Review.capture_id).where(Review.kind == ReviewKind.CORRECT, last, ~settled)
    return (
        select(Capture)
        .where(Capture.task_id == task_id, col(Capture.endpoint).in_(chat.ENDPOINTS), col(Capture.id).in_(corrected))
        .order_by(col(Capture.id))
    )


def _corrections(session: Session, capture_ids: list[str]) -> dict[str, Review]:
    """By capture: its last review, where that is a correction."""
    reviews = session.exec(
        select(Review)
        .where(col(Review.capture_id).in_(capture_ids), Review.kind != ReviewKind.TAG)
        .order_by(col(Review.created_at), col(Review.id))
    )
    latest = {review.capture_id: review for review in reviews}
    return {capture_id: review for capture_id, review in latest.items() if review.kind == ReviewKind.CORRECT}


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
