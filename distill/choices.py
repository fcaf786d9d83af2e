"""Choices: which of a task's pairs a dataset made now would have, and why not the others: people's word, majorities, caps."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from distill import caps
from store.policy import Policy
from store.states import PairStatus, ReviewKind, Split
from store.tables import Capture, Message, Pair, Review

REJECTED = "a person rejected it"
UNREVIEWED = "nobody has approved it, which the task's policy asks for"
PREFERRED = "a person preferred another answer to the same prompt"
REPEATED = "another pair has the same prompt and, since a person corrected it, the same answer"
DISAGREES = "the teacher mostly answered the same prompt otherwise"
UNDECIDED = "the teacher answered the same prompt in different ways, none of them mostly"
CROWDED = "there are enough rows of its cluster: near-duplicates, or turns of one conversation"
ONE_A_CLUSTER = "another row of its cluster is held out: near-duplicates, or turns of one conversation"
TOO_OLD = "there are enough later rows that are not trained on"
LOUD = "its user has contributed as many rows as one user may"


@dataclass(frozen=True)
class Choice:
    """A pair that a dataset made now would have, without its prompt."""

    pair_id: str
    completion: Message
    rejected: Message | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Chosen:
    """What a dataset made now would have."""

    train: list[Choice]
    validation: list[Choice]
    holdout: list[Choice]
    pairs: int  #: that were there to choose from
    train_pairs: int  #: of these, on the side that is trained on
    conversations: int  #: among them
    clusters: int
    unreviewed: int  #: pairs left out because nobody has reviewed them
    left_out: dict[str, str]  #: by pair that is fit and not chosen: why
    news: dict[str, str]  #: the same, and "" for those that are chosen now, where the pairs' rows say something else


@dataclass(frozen=True)
class _Candidate:
    """A pair on its way into a dataset."""

    id: str
    split: Split | None
    content: str
    prompt: str
    cluster: str
    contributor: str
    completion: Message
    rejected: Message | None
    blessed: int  #: 0; else a person approved or corrected it, the later the greater


def choose(session: Session, task_id: str, policy: Policy) -> Chosen:
    """The pairs a dataset made now would have, oldest first, people's reviews applied: their last word on the same content counts.

    Rejected pairs are out, corrections replace the teacher's answer. Of different answers to one prompt the one that a person
    preferred is learned, else the one that the teacher mostly gave, else none. No cluster and no user owns what is learned. The
    holdout is the latest `policy.holdout_max`, one row a cluster, whatever the teacher answered to the same prompt elsewhere.
    """
    reviews = _latest_reviews(session, task_id)
    latest = {content: (number, review) for number, (content, review) in enumerate(reviews.items(), start=1)}
    out: dict[str, str] = {}
    said: dict[str, str] = {}
    sides: dict[Split | None, list[_Candidate]] = {split: [] for split in Split}
    refused: dict[str, Message] = {}  #: by prompt, an answer that a person rejected
    conversations, clusters, train_pairs = set[str](), set[str](), 0
    hashes = (Pair.content_hash, Pair.prompt_hash, Pair.conversation, Pair.cluster, Pair.contributor)
    columns = (Pair.id, Pair.capture_id, Pair.split, Pair.left_out, Pair.completion, Pair.rejected)
    for row in ready(session, task_id, *hashes, *columns):
        said[row.id] = row.left_out
        number, review = latest.get(row.content_hash, (0, None))
        kind = None if review is None else review.kind
        approved = policy.train_unreviewed or kind in (ReviewKind.APPROVE, ReviewKind.CORRECT)
        train_pairs += row.split == Split.TRAIN and approved  # as `due` counts
        conversations.add(row.conversation)
        clusters.add(row.cluster or row.id)
        if kind is None and not policy.train_unreviewed:
            out[row.id] = UNREVIEWED
        elif kind == ReviewKind.REJECT:
            out[row.id] = REJECTED
            refused[row.prompt_hash] = row.completion
        else:
            corrected = _correction(session, row.capture_id, review, policy) if kind == ReviewKind.CORRECT else None
            rejected = row.completion if corrected and corrected != row.completion else row.rejected
            found = (row.id, row.split, row.content_hash, row.prompt_hash or row.id, row.cluster or row.id, row.contributor)
            sides[row.split].append(_Candidate(*found, corrected or row.completion, rejected, number))
    latest_rows = slice(-policy.holdout_max, None)
    votes = _votes(session, task_id, [*sides[Split.TRAIN], *sides[Split.VALIDATION]])
    train = _capped(_uncrowded(_settled(sides[Split.TRAIN], votes, out), policy, out), policy, out)
    validation = _capped(_uncrowded(_settled(sides[Split.VALIDATION], votes, out), policy, out), policy, out)
    holdout = _capped(_one_a_cluster(sides[Split.HOLDOUT], out), policy, out)
    out |= {each.id: TOO_OLD for each in [*validation[: -policy.holdout_max], *holdout[: -policy.holdout_max]]}
    weights = _weights(train)
    return Chosen(
        train=[
            Choice(each.id, each.completion, each.rejected or refused.get(each.prompt), weight)
            for each, weight in zip(train, weights, strict=True)
        ],
        validation=[Choice(each.id, each.completion) for each in validation[latest_rows]],
        holdout=[Choice(each.id, each.completion) for each in holdout[latest_rows]],
        pairs=len(said),
        train_pairs=train_pairs,
        conversations=len(conversations),
        clusters=len(clusters),
        unreviewed=sum(why == UNREVIEWED for why in out.values()),
        left_out=out,
        news={pair_id: out.get(pair_id, "") for pair_id, known in said.items() if known != out.get(pair_id, "")},
    )


def _correction(session: Session, capture_id: str, review: Review | None, policy: Policy) -> Message | None:
    """A person's answer; redacted where the policy asks for that."""
    if review is None or review.correction is None or not policy.redact:
        return None if review is None else review.correction
    from distill import pairs  # only here: what chooses is else light enough for whoever only asks whether a task can be trained

    return pairs.redacted(session.get_one(Capture, capture_id), policy, review.correction)


def _settled(candidates: Sequence[_Candidate], votes: dict[str, int], out: dict[str, str]) -> list[_Candidate]:
    """One answer a prompt, each once: a person's, else the one that more than half of the teacher's answers are."""
    prompts = _grouped(candidates, lambda each: each.prompt)
    for same in prompts.values():
        if len(same) == 1:
            continue
        blessed = max(same, key=lambda each: each.blessed)
        total = sum(votes[each.content] for each in same)
        most = max(same, key=lambda each: votes[each.content])
        for each in same:
            if blessed.blessed:
                if each is not blessed:
                    out[each.id] = REPEATED if each.completion == blessed.completion else PREFERRED
            elif 2 * votes[most.content] <= total:
                out[each.id] = UNDECIDED
            elif each is not most:
                out[each.id] = f"{DISAGREES}: {votes[most.content]} of {total} times"
    return [each for each in candidates if each.id not in out]


def _votes(session: Session, task_id: str, candidates: Sequence[_Candidate]) -> dict[str, int]:
    """How often the teacher gave an answer to a prompt that has several: exact duplicates count."""
    prompts = Counter(each.prompt for each in candidates)
    contents = [each.content for each in candidates if prompts[each.prompt] > 1]
    found: dict[str, int] = {}
    for start in range(0, len(contents), 500):  # a database takes so many parameters
        some = sa.select(col(Pair.content_hash), sa.func.count()).where(col(Pair.task_id) == task_id)
        some = some.where(col(Pair.content_hash).in_(contents[start : start + 500])).group_by(col(Pair.content_hash))
        found |= {content: count for content, count in session.execute(some)}  # noqa: C416 - mypy wants it so
    return found


def _uncrowded(candidates: Sequence[_Candidate], policy: Policy, out: dict[str, str]) -> list[_Candidate]:
    """At most `policy.cluster_rows` of a cluster: what people approved, then the latest."""
    for same in _grouped(candidates, lambda each: each.cluster).values():
        kept = sorted(same, key=lambda each: (each.blessed > 0, each.id))[-policy.cluster_rows :]
        out |= {each.id: CROWDED for each in same if not each.blessed and each not in kept}
    return [each for each in candidates if each.id not in out]


def _one_a_cluster(candidates: Sequence[_Candidate], out: dict[str, str]) -> list[_Candidate]:
    """Any one, the same each time."""
    for same in _grouped(candidates, lambda each: each.cluster).values():
        one = min(same, key=lambda each: each.content)
        out |= {each.id: ONE_A_CLUSTER for each in same if each is not one}
    return [each for each in candidates if each.id not in out]


def _capped(candidates: Sequence[_Candidate], policy: Policy, out: dict[str, str]) -> list[_Candidate]:
    """No more of one user than `distill.caps` says: what people approved, and a fixed choice of the rest."""
    users = _grouped([each for each in candidates if each.contributor], lambda each: each.contributor)
    others = Counter(each.cluster for each in candidates if not each.contributor)
    rows = {user: len(theirs) for user, theirs in users.items()}
    for user, limit in caps.limits(rows, list(others.values()), policy.user_share, policy.first_pairs).items():
        ranked = sorted(users[user], key=lambda each: (not each.blessed, each.content))
        out |= {each.id: LOUD for each in ranked[limit:] if not each.blessed}
    return [each for each in candidates if each.id not in out]


def _weights(candidates: Sequence[_Candidate]) -> list[float]:
    """A cluster of m rows weighs as much as the square root of m rows; 1 on average."""
    sizes = Counter(each.cluster for each in candidates)
    weights = [1 / math.sqrt(sizes[each.cluster]) for each in candidates]
    mean = sum(weights) / max(1, len(weights))
    return [round(weight / mean, 4) for weight in weights]


def _grouped(candidates: Iterable[_Candidate], key: Callable[[_Candidate], str]) -> dict[str, list[_Candidate]]:
    groups: dict[str, list[_Candidate]] = defaultdict(list)
    for each in candidates:
        groups[key(each)].append(each)
    return groups


def ready(session: Session, task_id: str, *columns: Any) -> Iterable[Any]:
    """These columns of the task's pairs that are fit to learn from, oldest first."""
    ready = sa.select(*columns).where(col(Pair.task_id) == task_id, col(Pair.status) == PairStatus.READY)
    return session.execute(ready.order_by(col(Pair.capture_id)))


def _latest_reviews(session: Session, task_id: str) -> dict[str, Review]:
    """By a pair's content: the last review that says something of its worth, be it of a duplicate."""
    reviews = session.exec(
        select(Pair.content_hash, Review)
        .join(Review, col(Pair.capture_id) == col(Review.capture_id))
        .where(Pair.task_id == task_id, Review.kind != ReviewKind.TAG)
        .order_by(col(Review.created_at), col(Review.id))
    )
    return dict(reviews.all())
