"""Pairs: captures judged fit, or not, to learn from. One row a capture; who is left out is told why."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from distill import content, language, redaction, sketches
from distill.clusters import Clusters
from distill.refusals import refuses
from store import answers, chat
from store.policy import Policy
from store.states import CaptureStatus, PairStatus, ReviewKind, Server
from store.tables import Capture, Message, Pair, Review

FINISHED = {"stop", "tool_calls", "function_call"}


class Unfit(Exception):
    """Why a capture is not a pair, in a few words for a person."""


def extract(session: Session, task_id: str, policy: Policy, *, limit: int = 500, clusters: Clusters | None = None) -> int:
    """Make pairs of the oldest `limit` captures of the task that have none yet. Returns how many were looked at.

    Only complete answers of the teacher are looked at, and captures whose answer a person has corrected since: a student must not
    learn from itself. Who calls it again and again hands it the same `clusters`, which are then read once.
    """
    clusters = Clusters(task_id) if clusters is None else clusters
    captures = session.exec(_unseen(task_id).limit(limit)).all() or session.exec(_corrected(task_id).limit(limit)).all()
    if not captures and not clusters.behind(session):
        return 0
    clusters.open(session)
    if known := clusters.place_known(session, limit, policy):
        return known
    corrections = _corrections(session, [capture.id for capture in captures])
    for old in session.exec(select(Pair).where(col(Pair.capture_id).in_([capture.id for capture in captures]))):
        session.delete(old)  # was left out before its answer was corrected
    session.flush()
    found = []
    for capture in captures:
        review = corrections.get(capture.id)
        pair = judge(capture, policy, review.correction if review else None)
        pair.capture_sha256 = capture.digest()
        pair.created_at = max(pair.created_at, review.created_at) if review else pair.created_at  # lest it is looked at for ever
        found.append(pair)
    if not policy.off_language:
        _check_languages([p for p in found if p.status == PairStatus.READY and p.capture_id not in corrections], clusters)
    _place(session, clusters, [pair for pair in found if pair.status == PairStatus.READY], policy)
    session.add_all(found)
    clusters.save(session)
    return len(captures)


def are_missing(session: Session, task_id: str) -> bool:
    """Whether there is something to make pairs of."""
    return any(session.exec(query(task_id).limit(1)).first() is not None for query in (_unseen, _corrected))


def judge(capture: Capture, policy: Policy, correction: Message | None = None) -> Pair:
    """The capture's pair, READY without a place yet, or EXCLUDED with its reason. Reads only the capture, and a correction."""
    pair = Pair(task_id=capture.task_id, capture_id=capture.id, status=PairStatus.EXCLUDED)
    try:
        request = _request(capture.request, capture.endpoint)
        pair.contributor = contributor(request, capture)
        pair.messages, pair.tools = [_plain(m) for m in request["messages"]], request.get("tools") or None
        pair.response_format = request.get("response_format") or None
        pair.completion = _fit(correction) if correction else _completion(capture)
        pair.rejected = _replaced(capture, pair.completion) if correction else None
        _check_words(pair, policy, refusals=policy.refusals or correction is not None)
        redaction.redact(pair, policy.redact)
        pair.prompt_hash = content.of_prompt(pair)
        pair.content_hash = content.of_pair(pair)
        pair.conversation = conversation(pair.messages, capture.meta)
    except Unfit as unfit:
        pair.reason = str(unfit)[:200]
        redaction.redact(pair, policy.redact)
        return pair
    except orjson.JSONEncodeError:
        return Pair(task_id=pair.task_id, capture_id=pair.capture_id, status=pair.status, reason="its JSON is nested too deeply")
    pair.status = PairStatus.READY
    return pair


def redacted(capture: Capture, policy: Policy, correction: Message) -> Message:
    """A person's answer, redacted together with the prompt that it answers: the same values become the same ones."""
    return judge(capture, policy, correction).completion if policy.redact else correction


def contributor(request: dict[str, Any], capture: Capture) -> str:
    """Who sent it, as a hash: `safety_identifier`, `user` or `metadata.user`, else its virtual key; "" if nobody is named."""
    for named in (request.get("safety_identifier"), request.get("user"), capture.meta.get("user")):
        if isinstance(named, str) and named:
            return content.digest(["user", named])
    return content.digest(["key", capture.key_id]) if capture.key_id else ""


def conversation(messages: list[Message], meta: dict[str, Any]) -> str:
    """What turns of one session, and equal prompts, have in common: `metadata.conversation`, else the first user message.

    It does not name the task: tasks may be merged.
    """
    named = meta.get("conversation")
    first = next((m for m in messages if m.get("role") == "user"), None)
    return content.digest([named if isinstance(named, str) else first])


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
    return _answer(capture)


def _answer(capture: Capture) -> Message:
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


def _replaced(capture: Capture, correction: Message) -> Message | None:
    """The answer that a person corrected, if it was a whole one and is another."""
    try:
        answer = _answer(capture)
    except Unfit:
        return None
    return answer if content.anonymous([answer]) != content.anonymous([correction]) else None


def _check_words(pair: Pair, policy: Policy, *, refusals: bool) -> None:
    answer = pair.completion
    if not refusals and not answer.get("tool_calls") and refuses(answers.text_of(answer)):
        raise Unfit("the teacher refused in words")
    characters = len(sketches.text([*pair.messages, answer], fixed=True))
    if characters > policy.max_characters:
        raise Unfit(f"it is longer than {policy.max_characters:,} characters: {characters:,}")


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


def _check_languages(pairs: Sequence[Pair], clusters: Clusters) -> None:
    """Leave out what is answered in another language than the task answers in, these pairs counted."""
    found: list[tuple[Pair, str | None, str]] = []
    for pair in pairs:
        if answered := language.of(answers.text_of(pair.completion)):
            asked = [message for message in pair.messages if message.get("role") == "user"]
            found.append((pair, language.of(sketches.text(asked[-1:], fixed=True)) if asked else None, answered))
    counts = Counter(language.key(asked, answered) for _, asked, answered in found)
    clusters.languages = dict(Counter(clusters.languages) + counts)
    for pair, question, answered in found:
        if why := language.off(clusters.languages, question, answered):
            pair.status, pair.reason = PairStatus.EXCLUDED, why
            pair.content_hash = pair.prompt_hash = ""  # a person's correction can still make a pair of it


def _place(session: Session, clusters: Clusters, pairs: Sequence[Pair], policy: Policy) -> None:
    """Put new pairs, oldest first, into their clusters and so on their side, whatever the policy says of later ones by now.

    Left out is what the task has already, and what belongs on both sides.
    """
    if not pairs:
        return
    contents = clusters.known(session, Pair.content_hash, {pair.content_hash for pair in pairs})
    prompts = clusters.known(session, Pair.prompt_hash, {pair.prompt_hash for pair in pairs})
    conversations = clusters.known(session, Pair.conversation, {pair.conversation for pair in pairs})
    clusters.learn(session, pairs)
    for pair, sketch in zip(pairs, clusters.sketch([pair.messages for pair in pairs]), strict=True):
        why = "exact duplicate of an earlier pair"
        if pair.content_hash not in contents:
            linked = (conversations.get(pair.conversation), prompts.get(pair.prompt_hash))
            why = clusters.place(pair, sketch, linked, policy)
        if why:
            pair.status, pair.reason = PairStatus.EXCLUDED, why
        else:
            contents[pair.content_hash] = prompts[pair.prompt_hash] = conversations[pair.conversation] = pair.cluster


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
