"""Clusters: pairs that are near-duplicates of each other, or of one conversation. A cluster is on one side of the split, for good.

A cluster that is alike to another, though no near-duplicate of it, takes its side: both may be near-duplicates of a third.
A task's clusters are held in memory while its pairs are made, and can be read from the rows at any time. When a pair shows that two
clusters are one, they become one, if they are on the same side; else the pair, the later, is left out.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlmodel import Session, col, insert, select, update

from distill import caps, sketches
from distill.sketches import Index, Shingles, Sketch, Template
from store.policy import Policy
from store.states import PairStatus, Split
from store.tables import Clustering, Pair, PairSketch

WINDOW = 20  # clusters
VALIDATION_FROM = 100  # clusters: of a task's first hundred every row is needed to learn from
SAMPLE = 512  # pairs from which it is learned what prompts share
LEARN_EVERY = 256  # pairs
RESKETCH = 1024  # pairs at most that are sketched anew when more is known of what they share
FEW = 5  # users
BEHIND = 0  # a clustering's version while pairs may be without a sketch

STRADDLES = "a near-duplicate of pairs on different sides of the split"
CONVERSATION_STRADDLES = "a near-duplicate of pairs on the other side of the split from its conversation"


def side(number: int, policy: Policy) -> Split:
    """The side of a task's cluster `number`, counted from 0 in the order in which they came.

    Each window of 20 is trained on at first, then for validation, and held out at its end: what judges a student is later than
    what it learned from, never much later, and a recording sorted by its labels has all labels on each side. Shares that are no
    twentieth come out right over several windows.
    """
    window, position = divmod(number, WINDOW)

    def quota(share: float) -> int:
        return int((window + 1) * WINDOW * share + 1e-9) - int(window * WINDOW * share + 1e-9)

    held_out = quota(policy.holdout)
    if position >= WINDOW - held_out:
        return Split.HOLDOUT
    validation = min(policy.validation, (1 - policy.holdout) / 2) if number >= VALIDATION_FROM else 0.0
    return Split.VALIDATION if position >= WINDOW - held_out - quota(validation) else Split.TRAIN


class Clusters:
    """A task's clusters. For one transaction after another of one process; what a failed one did to it is not undone."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self._seen: tuple[Any, ...] | None = None  #: what there was in the rows when they were read, or written by this

    def behind(self, session: Session) -> bool:
        """Whether there may be pairs that have a side but no sketch: of before this was kept, or of a task merged into this one."""
        row = session.get(Clustering, self.task_id)
        return row is None or row.version != sketches.VERSION

    def open(self, session: Session) -> None:
        """Read what the rows say, unless nobody else has changed it since: a second or two for 100,000 pairs.

        Nothing is written: who reads it before the transaction that writes keeps nobody waiting.
        """
        if self._seen == (seen := self._state(session)):
            return
        self._seen, task_id = seen, self.task_id
        row = session.get(Clustering, task_id) or Clustering(task_id=task_id, version=BEHIND)
        self._outdated = row.version not in (sketches.VERSION, BEHIND)  # sketches of another version are made anew
        self._behind = row.version != sketches.VERSION
        self.languages = dict(row.languages)
        self._made, self._learned = row.clusters, row.learned
        self._template = Template.read(row.most, row.many)
        self._side: dict[str, Split] = {}
        self._into: dict[str, str] = {}  #: of clusters that were found to be one: the other
        self._merged: set[str] = set()  #: since the last `save`
        self._new: dict[str, Sketch] = {}  #: by pair, since the last `save`
        self._unsketched: list[str] = []  #: oldest first
        if missing := self._read(session):
            order = session.execute(_ready(task_id, Pair.id).order_by(col(Pair.capture_id))).scalars()
            self._unsketched = [pair_id for pair_id in order if pair_id in missing]

    def __len__(self) -> int:
        """Pairs that have a place."""
        return len(self._clusters)

    def known(self, session: Session, column: Any, values: set[str]) -> dict[str, str]:
        """By value of a column of pairs, the cluster of the pairs that have it."""
        rows = session.execute(_ready(self.task_id, column, Pair.id, Pair.cluster, Pair.split).where(column.in_(values)))
        found = {}
        for value, pair_id, cluster, split in rows:
            found[value] = self._find(cluster or pair_id)
            self._side.setdefault(found[value], split)
        return found

    def learn(self, session: Session, new: Sequence[Pair]) -> None:
        """Look at what prompts share, now and then: of the latest pairs and of these. Call it before these get their places."""
        self._seen = None  # until it is saved: a transaction that fails leaves this as nobody's rows are
        count = len(self) + len(new)
        if count < max(sketches.ENOUGH, self._learned + min(self._learned, LEARN_EVERY)):
            return
        self._learned = count
        latest: list[Any] = [*new[-SAMPLE:]]
        if len({pair.conversation for pair in latest}) < SAMPLE // 2:
            rows = _ready(self.task_id, Pair.conversation, Pair.contributor, Pair.messages).order_by(col(Pair.capture_id).desc())
            latest = [*reversed(session.execute(rows.limit(SAMPLE // 2)).all()), *latest]
        known = self._template
        self._template = sketches.learn([_shingles(messages, fixed=True) for messages in _voices(latest)], known)
        if self._template is not known and len(self) <= RESKETCH:
            self._sketch_again(session)

    def sketch(self, prompts: Sequence[list[dict[str, Any]]]) -> Sketch:
        """Of prompts' messages: [n, PERMUTATIONS]."""
        fixed = self._template is not None  # until it is known what prompts share: all but what nearly always is
        return sketches.sketch([sketches.varying(_shingles(messages, fixed=fixed), self._template) for messages in prompts])

    def place(self, pair: Pair, sketch: Sketch, linked: Iterable[str | None], policy: Policy) -> str:
        """Give a pair its cluster and its side. `linked` are clusters that it belongs to whatever it is near to.

        Returns why it cannot have a place, and leaves it as it is; else "".
        """
        self._seen = None
        named = {self._find(cluster) for cluster in linked if cluster}
        alike = self._index.near(sketch)
        near = {self._find(self._clusters[number]) for number, share in alike.items() if share >= sketches.NEAR}
        sides = {self._side[cluster] for cluster in named | near}
        if len(sides) > 1:
            return CONVERSATION_STRADDLES if named else STRADDLES
        if sides:
            pair.cluster = min(named | near)
            for other in (named | near) - {pair.cluster}:
                self._into[other] = pair.cluster
                self._merged.add(other)
        else:
            pair.cluster = pair.id
            if alike:  # with one that comes later they may turn out to be near-duplicates
                self._side[pair.id] = self._side[self._find(self._clusters[max(alike, key=lambda number: alike[number])])]
            else:
                self._side[pair.id] = side(self._made, policy)
                self._made += 1
        pair.split = self._side[pair.cluster]
        self._add(pair.cluster, sketch)
        self._new[pair.id] = sketch
        return ""

    def place_known(self, session: Session, limit: int, policy: Policy) -> int:
        """Find what the oldest `limit` pairs that have a side but no sketch are near to. Returns how many were looked at."""
        some, self._unsketched = self._unsketched[:limit], self._unsketched[limit:]
        if not some:
            if self._behind:
                self.save(session)
            return 0
        pairs = session.exec(select(Pair).where(col(Pair.id).in_(some)).order_by(col(Pair.capture_id))).all()
        self.learn(session, pairs)
        for pair, sketch in zip(pairs, self.sketch([pair.messages for pair in pairs]), strict=True):
            own = self._find(pair.cluster or pair.id)
            assert pair.split is not None
            self._side.setdefault(own, pair.split)
            if why := self.place(pair, sketch, [own], policy):
                pair.status, pair.reason, pair.split, pair.cluster = PairStatus.EXCLUDED, why, None, ""
        self.save(session)
        return len(pairs)

    def save(self, session: Session) -> None:
        """Write what is new. The pairs that were given a place must be in the session."""
        session.flush()
        if self._outdated:
            session.execute(sa.delete(PairSketch).where(col(PairSketch.task_id) == self.task_id))
            self._outdated = False
        old = {cluster: self._find(cluster) for cluster in self._merged}
        for cluster, into in old.items():
            same = (col(Pair.task_id) == self.task_id, col(Pair.cluster) == cluster)
            session.execute(update(Pair).where(*same).values(cluster=into))
        if self._new:
            rows = [{"pair_id": i, "task_id": self.task_id, "sketch": each.tobytes()} for i, each in self._new.items()]
            session.execute(sa.delete(PairSketch).where(col(PairSketch.pair_id).in_(self._new)))  # of the task it was in before
            session.execute(insert(PairSketch), rows)
        most, many = self._template.packed() if self._template is not None else (b"", b"")
        self._behind = bool(self._unsketched)
        version = BEHIND if self._behind else sketches.VERSION
        row = Clustering(task_id=self.task_id, version=version, clusters=self._made, learned=self._learned)
        row.most, row.many, row.languages = most, many, self.languages
        session.merge(row)
        session.flush()
        self._new, self._merged, self._seen = {}, set(), self._state(session)

    def _state(self, session: Session) -> tuple[Any, ...]:
        """What changes whenever somebody else makes pairs, merges tasks or erases."""
        row = session.get(Clustering, self.task_id)
        ours = select(sa.func.count(), sa.func.max(col(PairSketch.pair_id))).where(PairSketch.task_id == self.task_id)
        return (row and row.version, row and row.clusters, row and row.learned, *session.exec(ours).one())

    def _read(self, session: Session) -> set[str]:
        """Clusters, sides and sketches of the task's pairs, of which an index is read and no row: rows are long.

        Returns those that have no sketch.
        """
        pairs = session.execute(_ready(self.task_id, Pair.id, Pair.cluster, Pair.split)).all()
        ours = select(PairSketch.pair_id, PairSketch.sketch).where(PairSketch.task_id == self.task_id)
        known = {} if self._outdated else dict(session.exec(ours).all())
        placed = sorted((row for row in pairs if row.id in known), key=lambda row: row.id)
        self._clusters = [row.cluster or row.id for row in placed]
        self._side |= {cluster: row.split for cluster, row in zip(self._clusters, placed, strict=True)}
        stacked = np.frombuffer(b"".join(known[row.id] for row in placed), np.uint16)
        self._index = Index(stacked.reshape(len(placed), sketches.PERMUTATIONS))
        return {row.id for row in pairs} - known.keys()

    def _sketch_again(self, session: Session) -> None:
        """All pairs' sketches with what is known by now. Clusters stay as they are."""
        known = _ready(self.task_id, Pair.id, Pair.messages).join(PairSketch, col(PairSketch.pair_id) == col(Pair.id))
        rows = session.execute(known.where(PairSketch.task_id == self.task_id)).all()
        if not rows:
            return
        for row, sketch in zip(rows, self.sketch([row.messages for row in rows]), strict=True):
            session.execute(update(PairSketch).where(col(PairSketch.pair_id) == row.id).values(sketch=sketch.tobytes()))
        self._read(session)

    def _add(self, cluster: str, sketch: Sketch) -> None:
        self._index.add(sketch)
        self._clusters.append(cluster)

    def _find(self, cluster: str) -> str:
        while cluster in self._into:
            cluster = self._into[cluster]
        return cluster


def _voices(pairs: Sequence[Any]) -> list[list[dict[str, Any]]]:
    """Prompts' messages, the latest of each conversation, and of one user no more than three times what is usual: what one sends
    again and again is no template. Among fewer than five users it may well be.
    """
    prompts = {pair.conversation: pair for pair in pairs}
    users = Counter(pair.contributor for pair in prompts.values() if pair.contributor)
    if len(users) < FEW:
        return [pair.messages for pair in prompts.values()]
    share, had = math.ceil(caps.USUAL * median(users.values())), Counter[str]()
    found = []
    for pair in reversed(prompts.values()):
        had[pair.contributor] += 1
        if not pair.contributor or had[pair.contributor] <= share:
            found.append(pair.messages)
    return found


def _shingles(messages: list[dict[str, Any]], *, fixed: bool) -> Shingles:
    return sketches.shingles(sketches.text(messages, fixed=fixed))


def _ready(task_id: str, *columns: Any) -> Any:
    return sa.select(*columns).where(col(Pair.task_id) == task_id, col(Pair.status) == PairStatus.READY)
