"""Which dictionary a task's captures are packed with, and when it gets a new one.

A task's first dictionary is made when FIRST captures are there, the next when there are GROWTH times as many, and so on; also when
what is packed takes WORSE times the room that it took before: then the prompt has changed. One is kept only if it saves more in as
many captures as there have been than it takes itself, and, where there is one already, a tenth of what the latest take. A task has
at most MOST of them.
"""

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import orjson
from sqlmodel import Session, col, func, select

from store import blobs, shared
from store.capture import DICTIONARIES, Capture, Dictionary, insert_new
from store.chat import as_chat

log = logging.getLogger("stillroom.store")

FIRST, GROWTH = 16, 8
RECENT, WORSE = 64, 1.5  #: captures after which their ratio is compared
MOST = 32
SAMPLES, SAMPLE_BYTES = 64, 400_000  #: captures of which a dictionary is made, and bytes of them
TASKS = 500  #: that are remembered
_LATEST = 2000  # captures among which a task's are looked for

Parts = list[bytes]


@dataclass
class _Task:
    """What a writer remembers of a task."""

    made: int  #: dictionaries in the database
    seen: int  #: captures
    due: int  #: seen captures at which a dictionary is made
    patience: int = RECENT  #: captures for which one that takes more room is put up with, after a look for a better dictionary
    calm: int = 0  #: seen captures up to which it is
    dictionary: blobs.Dictionary | None = None
    id: int | None = None  #: the dictionary's
    usual: float | None = None  #: packed / raw when the dictionary was new
    raw: int = 0  #: bytes of recent captures
    packed: int = 0
    recent: int = 0

    def drop(self) -> None:
        """Pack without one until there is another, which is made as soon as may be."""
        self.dictionary = self.id = self.usual = None
        self.raw = self.packed = self.recent = 0
        self.due = self.seen

    def use(self, content: bytes) -> None:
        """Pack with this dictionary from now on."""
        self.dictionary, self.id, self.usual = blobs.Dictionary(content), blobs.name(content), None
        self.raw = self.packed = self.recent = 0

    def pack(self, parts: Parts) -> tuple[int | None, bytes]:
        """(the dictionary's id, the frame)."""
        raw = sum(map(len, parts))
        if self.dictionary is None or raw > blobs.ALONE:
            return None, blobs.pack(parts)
        frame = self.dictionary.pack(parts)
        self.raw, self.packed, self.recent = self.raw + raw, self.packed + len(frame), self.recent + 1
        return self.id, frame

    def worse(self) -> bool:
        """Whether recent captures take more room than they used to."""
        if self.recent < RECENT:
            return False
        ratio = self.packed / max(self.raw, 1)
        self.raw = self.packed = self.recent = 0
        before, self.usual = self.usual, ratio  # what is no better with a new dictionary is usual from now on
        return before is not None and ratio > WORSE * before and self.seen >= self.calm


class Packer:
    """Packs captures, and makes their tasks' dictionaries. One thread's; it may outlive its database."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, _Task] = OrderedDict()

    def pack(self, session: Session, captures: Sequence[Capture]) -> list[tuple[int | None, bytes]]:
        """For each (its dictionary's id, or None; its frame). The dictionaries are in the database when the session commits."""
        groups: dict[str, list[Capture]] = {}
        for capture in captures:
            groups.setdefault(capture.task_id, []).append(capture)
        self._remember(session, groups)
        packed: dict[str, tuple[int | None, bytes]] = {}
        for task_id, group in groups.items():
            task = self._tasks[task_id]
            task.seen += len(group)
            if task.seen >= task.due:
                self._renew(session, task_id, task, group)
            packed |= {capture.id: task.pack(capture.parts()) for capture in group}
            if task.worse():
                task.due = task.seen
        self._keep(session, groups)
        return [packed[capture.id] for capture in captures]

    def _remember(self, session: Session, task_ids: Collection[str]) -> None:
        """Have these tasks in mind, and as many others as there is room for."""
        unknown = [task_id for task_id in task_ids if task_id not in self._tasks]
        if unknown:
            of_these = select(Dictionary.task_id, Dictionary.id).where(col(Dictionary.task_id).in_(unknown))
            of_these = of_these.where(~col(Dictionary.withdrawn))
            made: dict[str, list[int]] = {}
            for task_id, id in session.exec(of_these.order_by(col(Dictionary.created_at))):
                made.setdefault(task_id, []).append(id)
            counted = select(Capture.task_id, func.count()).where(col(Capture.task_id).in_(set(unknown) - made.keys()))
            seen = dict(session.exec(counted.group_by(col(Capture.task_id))).all())
            for task_id in unknown:
                self._tasks[task_id] = _begin(session, task_id, made.get(task_id, []), seen.get(task_id, 0))
        used = {task.id: task for task_id in task_ids if (task := self._tasks[task_id]).id is not None}
        # locked until the commit: one that is withdrawn meanwhile is withdrawn when these captures are there to be packed anew
        standing = select(Dictionary.id, Dictionary.withdrawn).where(col(Dictionary.id).in_(used)).with_for_update(read=True)
        for id, withdrawn in session.exec(standing) if used else ():
            if withdrawn:
                used[id].drop()
        for task_id in task_ids:
            self._tasks.move_to_end(task_id)
        while len(self._tasks) > max(TASKS, len(task_ids)):
            self._tasks.popitem(last=False)

    def _renew(self, session: Session, task_id: str, task: _Task, group: Sequence[Capture]) -> None:
        task.due, task.calm, task.patience = task.seen * GROWTH, task.seen + task.patience, task.patience * 2
        if task.made >= MOST:
            return
        samples = _samples(session, task_id, group)
        made = shared.dictionary(shared.text(voices(samples)), [capture.parts() for capture in samples])
        if made is None:
            return
        before, after = (shared.size(each, [capture.parts() for capture in samples]) for each in (task.dictionary, made))
        row = Dictionary.of(task_id, made.content)
        if (known := session.get(Dictionary, row.id)) is not None and known.withdrawn:
            return
        saved = before - after
        if saved / len(samples) * task.seen < len(row.packed) or (task.dictionary is not None and saved < before / 10):
            return
        log.info(
            "task %s: dictionary %d packs its last %d captures into %d bytes, not %d", task_id, row.id, len(samples), after, before
        )
        task.use(made.content)
        task.made, task.patience = task.made + 1, RECENT

    def _keep(self, session: Session, task_ids: Iterable[str]) -> None:
        """Put the dictionaries in use into the database: they are new, or the one they were in has been replaced."""
        tasks = {task_id: self._tasks[task_id] for task_id in task_ids}
        used = {task.id: (task_id, task.dictionary.content) for task_id, task in tasks.items() if task.dictionary is not None}
        there = session.exec(select(Dictionary.id).where(col(Dictionary.id).in_(used))).all()
        if missing := [Dictionary.of(*used[id]).model_dump() for id in used.keys() - set(there)]:
            session.execute(insert_new(session, DICTIONARIES), missing)


def _begin(session: Session, task_id: str, made: Sequence[int], seen: int) -> _Task:
    task = _Task(len(made), seen, FIRST * GROWTH ** len(made))
    if made:
        try:
            task.use(session.get_one(Dictionary, made[-1]).content())
        except blobs.BadFrame as error:
            log.error("task %s: captures packed with its last dictionary cannot be read: %s", task_id, error)
    return task


def _samples(session: Session, task_id: str, group: Sequence[Capture]) -> list[Capture]:
    """The task's latest captures: those to be stored, then those that are and can be read."""
    found: list[Capture] = []
    size = 0
    for capture in [*group[: -SAMPLES - 1 : -1], *_stored(session, task_id, max(SAMPLES - len(group), 0))]:
        try:
            size += sum(map(len, capture.parts()[:2]))
        except blobs.BadFrame:
            continue
        if size > SAMPLE_BYTES and len(found) >= FIRST:
            break
        found.append(capture)
    return found


def _stored(session: Session, task_id: str, count: int) -> list[Capture]:
    """The task's latest captures, among the latest of all."""
    latest = select(Capture.id).order_by(col(Capture.created_at).desc()).limit(_LATEST).subquery()
    chosen = select(Capture).join(latest, latest.c.id == col(Capture.id)).where(Capture.task_id == task_id)
    return list(session.exec(chosen.order_by(col(Capture.created_at).desc()).limit(count)))


def voices(captures: Sequence[Capture]) -> dict[str, list[bytes]]:
    """Bodies by person, if enough people are named, else by conversation: its first user message. What is no JSON is left out."""
    people: dict[str, list[bytes]] = {}
    conversations: dict[str, list[bytes]] = {}
    for capture in captures:
        try:
            request = orjson.loads(capture.request)
            messages = as_chat(capture.endpoint, request).get("messages") or []
            first = next((m for m in messages if m.get("role") == "user"), messages)
            bodies = [body[: shared.SAMPLE_BYTES] for body in capture.parts()[:2]]
            conversations.setdefault(repr(first), []).extend(bodies)
            people.setdefault(str(request.get("safety_identifier") or request.get("user")), []).extend(bodies)
        except (ValueError, TypeError, AttributeError, RecursionError):  # no JSON, or of a shape that nobody thought of
            continue
    return people if len(people) >= 2 * shared.VOICES else conversations
