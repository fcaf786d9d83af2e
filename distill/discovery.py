"""Tasks found by themselves: from the prompts that came, what belongs together and how it is known from now on.

    keys seen for the first time -> templates of system messages -> tasks merged
    questions without a system message -> templates of questions -> parts of that task

The proxy gives a request that fits nothing a task of its own, by its key. Here such tasks are compared with all others of their
shape (model, tools, response format); those that are one template filled in become one, and the proxy knows the next by it.
Whatever a person has named, decided, merged or divided stays: such a task may take others in, and is never merged away.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlmodel import Session, col, select

from distill import alignment
from distill.alignment import EVIDENCE, HOLE, Group, Text
from store import moves, tasks, templates
from store.capture import KINDS
from store.columns import now
from store.session import Database
from store.tables import Adapter, Capture, Route, Task, TaskAlias, TaskTemplate
from store.tasks import Identity
from store.templates import Shelf, Template

log = logging.getLogger("stillroom.distill")

ACTOR = templates.DISCOVERY
FRESH, KNOWN, ASKED = 800, 700, 600  # texts that are compared at once: of new tasks, of others, and questions
_TEXT = 60_000  # characters of one text: a longer one is known by its key alone
_ROUNDS = 25  # of one turn
_COUNTED = 64  # captures, beyond which it does not matter how many more there are
ALIASES = 20_000  #: keys merged by discovery that are remembered beside the templates that know them anyway
_FIXED = 24  # characters that a template of questions must have


@dataclass
class _Owner:
    """A task among those that are compared."""

    task: Task
    weight: int
    known: list[Template] = field(default_factory=list)
    fresh: bool = True

    @property
    def compared(self) -> bool:
        """Not one that says nothing, or too much."""
        return bool(self.known) or not (tasks.says_nothing(self.task.system) or len(self.task.system) > _TEXT)

    def text(self) -> Text:
        best = max(self.known, key=lambda each: each.weight, default=None)
        return Text(self.task.system if best is None else _as_text(best), max(self.weight, 1))


def turn(db: Database, check: Callable[[], None] = lambda: None, *, aliases: int = ALIASES) -> int:
    """Look at what is new. Returns how many tasks were merged away or found. Each step is a transaction of its own, and can be done
    again; `check` is called between them and raises if this process must stop. So many of the keys that were merged are remembered.
    """
    found = _mend(db)
    for shape in _read(db, _fresh_shapes):
        for _ in range(_ROUNDS):
            check()
            merged, left = _merge_within(db, shape)
            found += merged
            if not left:
                break
    for task_id in _read(db, _divided):
        for _ in range(_ROUNDS):
            parts = _divide(db, task_id, check)
            found += parts
            if not parts:
                break
    _forget(db, aliases)
    return found


def _mend(db: Database) -> int:
    """What another process wrote to a task while it was being merged away; and tasks of before there were shapes."""
    away = sa.select(col(TaskAlias.id)).where(col(TaskAlias.id) != col(TaskAlias.task_id))
    unknown = select(Task).where(col(Task.shape).is_(None))
    with db.read() as session:
        stray = session.execute(sa.select(KINDS.c.id).where(KINDS.c.task_id.in_(away)).limit(1)).first()
        risen = session.exec(select(Task.id).where(col(Task.id).in_(away)).limit(1)).first()
        old = session.exec(unknown.limit(1)).first()
    if not (stray or risen or old):
        return 0
    mended = 0
    with db.begin() as session:
        for task in session.exec(select(Task).where(col(Task.id).in_(away))).all():
            alias = session.get_one(TaskAlias, task.id)
            kept = session.get(Task, alias.task_id)
            if kept is None:
                session.delete(alias)
                continue
            try:
                moves.merge(session, kept, [task], by=alias.changed_by, why="it was written to while it was merged")
                mended += 1
            except moves.Busy:
                continue
        target = sa.select(col(TaskAlias.task_id)).where(col(TaskAlias.id) == KINDS.c.task_id).scalar_subquery()
        session.execute(sa.update(KINDS).where(KINDS.c.task_id.in_(away)).values(task_id=target, digest=None))
        for task in session.exec(unknown):
            task.shape = _shape(session, task)
    return mended


def _shape(session: Session, task: Task) -> str:
    """The shape of a task's requests; "" where they name it."""
    capture = session.exec(select(Capture).where(Capture.task_id == task.id).limit(1)).first()
    request = None if capture is None else moves.request_of(capture)
    if capture is None or request is None:
        return ""
    keyed = tasks.identify({**request, "metadata": None}, None, capture.endpoint)
    return keyed.shape if keyed.id == task.id else ""


def _fresh_shapes(session: Session) -> Sequence[str]:
    return session.exec(select(Task.shape).where(_is_fresh()).distinct()).all()  # type: ignore[return-value]


def _is_fresh() -> sa.ColumnElement[bool]:
    seen = sa.exists().where(col(TaskTemplate.task_id) == col(Task.id), col(TaskTemplate.scope) == col(Task.shape))
    return sa.and_(col(Task.shape) != "", ~seen)


def _merge_within(db: Database, shape: str) -> tuple[int, bool]:
    """Compare some of the shape's new tasks with the others. Returns how many were merged away, and whether new ones are left."""
    with db.read() as session:
        owners, left = _owners(session, shape)
    compared = [owner for owner in owners if owner.compared]
    groups = alignment.learn([owner.text() for owner in compared])
    with db.begin() as session:
        merged = 0
        for group in groups:
            merged += _settle(session, shape, [compared[each] for each in group.members], group)
        for owner in owners:
            if owner.fresh and not owner.compared and session.get(Task, owner.task.id) is not None:
                _write(session, shape, owner.task.id, (), ())
        session.flush()
        merged += _merge_alike(session, shape)
        _keep_apart(session, shape)
    if merged:
        log.info("%d tasks were others' templates filled in", merged)
    return merged, left


def _owners(session: Session, shape: str) -> tuple[list[_Owner], bool]:
    """Tasks of the shape, new ones among them, and whether there are more of these."""
    fresh = list(session.exec(select(Task).where(col(Task.shape) == shape, _is_fresh()).order_by(col(Task.id)).limit(FRESH + 1)))
    known = session.exec(
        select(Task).where(col(Task.shape) == shape, ~_is_fresh()).order_by(col(Task.created_at).desc()).limit(KNOWN)
    ).all()
    found: list[_Owner] = []
    for task in [*known, *fresh[:FRESH]]:
        owner = _Owner(task, moves.count(session, task.id, _COUNTED))
        found.append(owner)
    written = session.exec(select(TaskTemplate).where(TaskTemplate.scope == shape))
    by_task = {owner.task.id: owner for owner in found}
    for row in written:
        if row.task_id in by_task:
            by_task[row.task_id].fresh = False
            if row.segments:
                by_task[row.task_id].known.append(Template(row.task_id, tuple(row.segments), tuple(row.gaps)))
    return found, len(fresh) > FRESH


def _settle(session: Session, shape: str, owners: list[_Owner], group: Group) -> int:
    """Make one task of a group, as far as may be, and write how it is known. Returns how many were merged away."""
    there = [owner for owner in owners if session.get(Task, owner.task.id) is not None]  # a person may have merged it meanwhile
    if not there:
        return 0
    ids = [owner.task.id for owner in there]
    trained = set(session.exec(select(Adapter.task_id).where(col(Adapter.task_id).in_(ids)).distinct()))
    live = set(session.exec(select(Route.task_id).where(col(Route.task_id).in_(ids), col(Route.adapter_id).is_not(None))))
    rows = {task_id: session.get_one(Task, task_id) for task_id in ids}

    def rank(owner: _Owner) -> tuple[bool, bool, bool, bool, int, str]:
        id_ = owner.task.id
        return rows[id_].steered_at is None, id_ not in live, id_ not in trained, not owner.known, -owner.weight, id_

    kept, *others = sorted(there, key=rank)
    may = [
        owner.task.id
        for owner in others
        if rows[owner.task.id].steered_at is None and not (owner.task.id in trained and (trained - {owner.task.id}))
    ]
    merged = _merge(session, rows[kept.task.id], [rows[each] for each in may])
    apart = [owner for owner in others if owner.task.id not in merged]
    for owner in apart:
        if owner.fresh:
            _write(session, shape, owner.task.id, (), ())
    if len(merged) == len(others) and (merged or kept.fresh):
        _unlearn(session, shape, kept.task.id)
        if merged:
            _describe(rows[kept.task.id], kept, group)
        alone = not merged and group.segments == (kept.task.system,)
        _write(session, shape, kept.task.id, () if alone else group.segments, () if alone else group.gaps)
    elif kept.fresh:
        _write(session, shape, kept.task.id, (), ())
    return len(merged)


def _describe(task: Task, owner: _Owner, group: Group) -> None:
    """From now on the task shows what is fixed: the rest is what one request or another had, and perhaps somebody's."""
    task.system = " … ".join(group.segments)
    if task.steered_at is None and not owner.known:
        task.name = tasks.name_of(task.id, task.system)


def _merge(session: Session, kept: Task, others: Sequence[Task]) -> set[str]:
    """Those that could be merged: what is being trained is left until it is at its end."""
    try:
        if others:
            moves.merge(session, kept, others, by=ACTOR)
        return {task.id for task in others}
    except moves.Busy:
        merged = set()
        for other in others:
            try:
                moves.merge(session, kept, [other], by=ACTOR)
                merged.add(other.id)
            except moves.Busy:
                continue
        return merged


def _unlearn(session: Session, scope: str, task_id: str) -> None:
    mine = sa.delete(TaskTemplate).where(col(TaskTemplate.changed_by) == ACTOR, col(TaskTemplate.task_id) == task_id)
    session.execute(mine.where(col(TaskTemplate.scope) == scope))


def _write(session: Session, scope: str, task_id: str, segments: Sequence[str], gaps: Sequence[int]) -> None:
    row = TaskTemplate(task_id=task_id, scope=scope, segments=[*segments], gaps=[*gaps], changed_by=ACTOR, changed_at=now())
    session.add(row)


def _merge_alike(session: Session, shape: str) -> int:
    """Merge away all new tasks that fit a template that is known by now: there may be many more than are compared.

    Not one that has students: it may have been known before its template was erased.
    """
    shelf = _shelf(session, shape)
    fitting: dict[str, list[Task]] = {}
    taught = sa.exists().where(col(Adapter.task_id) == col(Task.id))
    for task in session.exec(select(Task).where(col(Task.shape) == shape, _is_fresh(), col(Task.steered_at).is_(None), ~taught)):
        if not tasks.says_nothing(task.system) and (template := shelf.find(task.system)) and template.task_id != task.id:
            fitting.setdefault(template.task_id, []).append(task)
    merged = 0
    for task_id, others in fitting.items():
        if (kept := session.get(Task, task_id)) is not None:
            merged += len(_merge(session, kept, others))
    return merged


def _keep_apart(session: Session, shape: str) -> None:
    """A task whose own prompt fits another one's template, and that is not it, is known by its key first."""
    shelf = _shelf(session, shape)
    known = set(session.exec(select(TaskAlias.id)))
    for task in session.exec(select(Task).where(col(Task.shape) == shape, ~_is_fresh())):
        if task.id not in known and (template := shelf.find(task.system)) and template.task_id != task.id:
            session.add(TaskAlias(id=task.id, task_id=task.id, changed_by=ACTOR))


def _shelf(session: Session, scope: str) -> Shelf:
    rows = session.exec(select(TaskTemplate).where(TaskTemplate.scope == scope))
    return Shelf(Template(row.task_id, tuple(row.segments), tuple(row.gaps)) for row in rows)


def _divided(session: Session) -> list[str]:
    """Tasks that have parts, or may have: those whose system message says nothing of what is to be done."""
    parts = sa.exists().where(col(TaskTemplate.scope) == col(Task.id))
    found = session.exec(select(Task).where(sa.or_(parts, sa.and_(col(Task.shape) != "", sa.func.length(Task.system) < 80))))
    divided = set(session.exec(select(TaskTemplate.scope).distinct()))
    return [task.id for task in found if task.id in divided or tasks.says_nothing(task.system)]


def _divide(db: Database, task_id: str, check: Callable[[], None]) -> int:
    """Give the parts of a task the captures that are theirs, and look for new parts in what is left."""
    with db.read() as session:
        directory, task = templates.read(session), session.get(Task, task_id)
    if task is None:
        return 0
    after, left = task.sorted_to, 0
    for _ in range(_ROUNDS):
        check()
        with db.begin() as session:
            last, looked_at, moved = moves.sort(session, task_id, directory, after)
            left += looked_at - moved
            if last is None:
                break
            after = last
            if left >= EVIDENCE or looked_at == moved:
                session.get_one(Task, task_id).sorted_to = after
    if left < EVIDENCE or task.shape in (None, "") or not tasks.says_nothing(task.system):
        return 0
    return _find_parts(db, task_id)


def _find_parts(db: Database, task_id: str) -> int:
    """Templates of questions among the latest of a task that has no system message to speak of."""
    with db.read() as session:
        latest = session.exec(select(Capture).where(Capture.task_id == task_id).order_by(col(Capture.id).desc()).limit(ASKED))
        counts: dict[str, int] = {}
        for capture in latest:
            _, asked = moves.texts_of(capture) or ("", "")
            if asked and len(asked) <= _TEXT:
                counts[asked] = counts.get(asked, 0) + 1
        known = [
            Template(row.task_id, tuple(row.segments), tuple(row.gaps))
            for row in session.exec(select(TaskTemplate).where(TaskTemplate.scope == task_id, TaskTemplate.changed_by == ACTOR))
        ]
    texts = [*(Text(_as_text(each), EVIDENCE) for each in known), *(Text(asked, number) for asked, number in counts.items())]
    found, groups = 0, alignment.learn(texts)
    with db.begin() as session:
        task = session.get(Task, task_id)
        if task is None:
            return 0
        for group in groups:
            old = {known[each].task_id for each in group.members if each < len(known)}
            new = [texts[each] for each in group.members if each >= len(known)]
            if len(old) > 1 or not new or sum(map(len, group.segments)) < _FIXED:
                continue
            if not old and (len(new) < alignment.DISTINCT or sum(each.weight for each in new) < EVIDENCE):
                continue
            found += 1
            part_id = old.pop() if old else _part(session, task, group).id
            _unlearn(session, task_id, part_id)
            _write(session, task_id, part_id, group.segments, group.gaps)
            task.sorted_to = ""  # all its captures are looked at once more
    return found


def _part(session: Session, task: Task, group: Group) -> Task:
    named = Identity(*tasks.part_of(task.id, group.segments), teacher_model=task.teacher_model, system=task.system)
    return session.get(Task, named.id) or moves.part(session, task, named)


def _forget(db: Database, keep: int) -> None:
    """Keys that were merged by discovery, of which there may be one a request: the latest are enough."""
    mine = sa.select(col(TaskAlias.id)).where(col(TaskAlias.changed_by) == ACTOR, col(TaskAlias.id) != col(TaskAlias.task_id))
    with db.read() as session:
        if session.execute(mine.offset(keep).limit(1)).first() is None:
            return
    with db.begin() as session:
        old = mine.order_by(col(TaskAlias.changed_at).desc()).offset(keep)
        ids = session.execute(old).scalars().all()
        for start in range(0, len(ids), 500):
            session.execute(sa.delete(TaskAlias).where(col(TaskAlias.id).in_(ids[start : start + 500])))


def _as_text(template: Template) -> str:
    """A template as one of the texts that it is compared with; what may be left open is as long as it was."""
    holes = [HOLE * max(1, (gap - 64) // 4) if gap else "" for gap in template.gaps]
    return "".join(piece for pair in zip(holes, [*template.segments, ""], strict=True) for piece in pair)


def _read(db: Database, look: Callable[[Session], Iterable[str]]) -> list[str]:
    with db.read() as session:
        return list(look(session))
