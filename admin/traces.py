"""What is made of many captures and may still have words that only one person said: dictionaries, templates, invented names.

A trace is looked for in the captures that are to go, and dropped again as soon as one that stays has it too: it is then not theirs
alone. What is left is removed before they are: as long as they are there, an erasure that was broken off can be done again. Of
templates, system texts and names that distill or the proxy made, whatever no capture has that stays is removed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson
import sqlalchemy as sa
from sqlmodel import Session, col, delete, select

from store import captures, shared, templates
from store import tasks as identity
from store.blobs import BadFrame
from store.capture import DICTIONARIES, KINDS
from store.session import Database
from store.states import TaskStatus
from store.tables import Adapter, Capture, Clustering, Dictionary, Task, TaskAlias, TaskTemplate

PAGE = 200  # captures read in one transaction
BETWEEN = " … "  #: of a system text of which discovery knows what is fixed: `distill.discovery`


@dataclass
class Traces:
    """What only captures that are to go have."""

    windows: dict[int, set[bytes]] = field(default_factory=dict)  #: runs of words, by dictionary
    segments: dict[str, set[str]] = field(default_factory=dict)  #: fixed texts, by template
    systems: dict[str, set[str]] = field(default_factory=dict)  #: system texts, or what is fixed in them, by task
    names: dict[str, str] = field(default_factory=dict)  #: that were made of a prompt, by task
    keys: set[str] = field(default_factory=set)  #: under which they came

    def __bool__(self) -> bool:
        found = (*self.windows.values(), *self.segments.values(), *self.systems.values())
        return any(found) or bool(self.names or self.keys)


def only(db: Database, task_id: str, going: set[str], theirs: Iterable[Capture]) -> Traces:
    """What `theirs`, the task's captures among those that are `going`, have and no other of the task, or of its parts."""
    with db.read() as session:
        contents = {each.id: each.content() for each in _dictionaries(session, task_id)}
        family, known = _family(session, task_id)
        rows = session.exec(select(Task).where(col(Task.id).in_(family))).all()
    found = Traces({id: set() for id in contents})
    found.segments = {each.id: set(each.segments) if each.changed_by == templates.DISCOVERY else set() for each in known}
    found.systems = {task.id: {*task.system.split(BETWEEN)} - {""} for task in rows}
    found.names = {task.id: task.name for task in rows if _is_invented(task)}
    for each in known:  # a part is called by its template
        if found.names.get(each.task_id) == identity.part_of(each.scope, each.segments)[1] and found.segments[each.id]:
            found.names.pop(each.task_id)
    looked: set[bytes] = set()
    for capture in theirs:
        new = _windows(capture) - looked
        looked |= new
        for id, content in contents.items():
            found.windows[id] |= {window for window in new if window in content}
        prompt = _prompt(capture)
        found.keys |= {prompt.key} if prompt else set()
        for each in known:
            found.segments[each.id] |= {segment for segment in each.segments if prompt and segment in prompt.text}
    for capture in _staying(db, family, going) if found else ():
        _drop(found, capture)
        if not found:
            break
    return found


def remove(db: Database, traces: Traces, going: set[str]) -> int:
    """Remove them. Returns how many dictionaries had some: what is packed with those is packed anew, some at a time."""
    if not traces:
        return 0
    had = [id for id, windows in traces.windows.items() if windows]
    with db.begin() as session:
        for id in had:
            captures.withdraw(session, id)
        for template_id, segments in traces.segments.items():
            if segments and (template := session.get(TaskTemplate, template_id)) is not None:
                session.delete(template)
        session.flush()
        for key in traces.keys:
            alias = session.get(TaskAlias, key)
            if alias is not None and key != alias.task_id and _made_of(key, alias.name):
                alias.name = ""
        for task_id in {*traces.names, *(task_id for task_id, theirs in traces.systems.items() if theirs)}:
            if (task := session.get(Task, task_id)) is not None:
                _describe(session, task, going)
    for id in had:
        while True:
            with db.begin() as session:
                if not captures.repack(session, id):
                    break
    return len(had)


def _describe(session: Session, task: Task, going: set[str]) -> None:
    """Its system text, and a name that was made of one, anew: of what is known to be fixed, else of the latest capture to stay."""
    row = session.exec(select(TaskTemplate).where(TaskTemplate.task_id == task.id, TaskTemplate.scope == task.shape)).first()
    part = session.exec(select(TaskTemplate).where(TaskTemplate.task_id == task.id, TaskTemplate.scope != task.shape)).first()
    newest = session.exec(select(Capture.id).where(Capture.task_id == task.id).order_by(col(Capture.id).desc()))
    staying = next((each for each in newest if each not in going), None)
    latest = None if staying is None else session.get(Capture, staying)
    prompt = None if latest is None else _prompt(latest)
    system = BETWEEN.join(row.segments) if row is not None and row.segments and task.shape else prompt.system if prompt else ""
    task.system = system
    if _is_invented(task):
        named = identity.name_of(task.id, " ".join(part.segments) if part is not None and not task.shape else system)
        taken = session.exec(select(Task.id).where(Task.name == named, Task.id != task.id)).first()
        task.name = task.id if taken or not system else named


def forget(session: Session, task_id: str) -> bool:
    """The task has no captures any more: nothing of their words stays with it. Whether its row may go too.

    It stays where an adapter is its, it has parts, or a person decided something about it.
    """
    task = session.get_one(Task, task_id)
    session.execute(delete(TaskTemplate).where(col(TaskTemplate.task_id) == task_id))
    session.execute(delete(Clustering).where(col(Clustering.task_id) == task_id))
    task.system = ""
    task.name = task.id if _is_invented(task) else task.name
    decided = task.steered_at is not None or bool(task.policy) or task.status != TaskStatus.ACTIVE
    parts = session.exec(select(TaskTemplate.id).where(TaskTemplate.scope == task_id)).first()
    trained = session.exec(select(Adapter.id).where(Adapter.task_id == task_id)).first()
    return not decided and parts is None and trained is None


def _family(session: Session, task_id: str) -> tuple[set[str], list[TaskTemplate]]:
    """The task, what it is a part of, and the parts of these; and all templates by which they are known."""
    found, new = set[str](), {task_id}
    while new:
        found |= new
        above = session.exec(select(TaskTemplate.scope).where(col(TaskTemplate.task_id).in_(new)))
        below = session.exec(select(TaskTemplate.task_id).where(col(TaskTemplate.scope).in_(new)))
        related = session.exec(select(Task.id).where(col(Task.id).in_({*above, *below})))
        new = {*related} - found
    return found, list(session.exec(select(TaskTemplate).where(col(TaskTemplate.task_id).in_(found))))


def _is_invented(task: Task) -> bool:
    """Whether nobody gave it its name: it was made of a prompt."""
    return task.steered_at is None and _made_of(task.id, task.name)


def _made_of(task_id: str, name: str) -> bool:
    """Whether a name was made for this id: it has the id's first digits then (`tasks.name_of`)."""
    return task_id.removeprefix("task_")[:6] in name


def _dictionaries(session: Session, task_id: str) -> list[Dictionary]:
    """Those in use that the task's captures are packed with, and its own."""
    named = sa.select(KINDS.c.dictionary_id).where(KINDS.c.task_id == task_id, KINDS.c.dictionary_id.is_not(None))
    mine = sa.or_(DICTIONARIES.c.task_id == task_id, DICTIONARIES.c.id.in_(named))
    return list(session.exec(select(Dictionary).where(mine, sa.func.length(DICTIONARIES.c.packed) > 0)))


def _drop(traces: Traces, capture: Capture) -> None:
    """What a capture that stays has too."""
    windows = _windows(capture)
    for common in traces.windows.values():
        common -= windows
    if (prompt := _prompt(capture)) is None:
        return
    traces.keys.discard(prompt.key)
    for texts in (*traces.segments.values(), *traces.systems.values()):
        texts -= {text for text in texts if text in prompt.text}
    traces.names = {id: name for id, name in traces.names.items() if not name.startswith(identity.name_of(id, prompt.system))}


def _staying(db: Database, task_ids: set[str], going: set[str]) -> Iterator[Capture]:
    """The other captures of these tasks, newest first."""
    before = "~"
    while True:
        query = select(Capture).where(col(Capture.task_id).in_(task_ids), col(Capture.id) < before)
        with db.read() as session:
            page = session.exec(query.order_by(col(Capture.id).desc()).limit(PAGE)).all()
            yield from (capture for capture in page if capture.id not in going)
        if not page:
            return
        before = page[-1].id


def _windows(capture: Capture) -> set[bytes]:
    try:
        return shared.windows(capture.request) | shared.windows(capture.response)
    except BadFrame:  # of what nobody can read nothing is known
        return set()


@dataclass(frozen=True)
class _Prompt:
    """What tasks are known by."""

    key: str
    system: str
    text: str  #: of which templates and system texts are


def _prompt(capture: Capture) -> _Prompt | None:
    """None where there is no JSON, no object, or nothing that can be read."""
    try:
        request = orjson.loads(capture.request)
        keyed = identity.identify({**request, "metadata": None}, None, capture.endpoint)
        asked = identity.asked_text(request, capture.endpoint)
    except (ValueError, TypeError, BadFrame):
        return None
    system = keyed.system.replace("\0", "")  # as a task's row has it
    return _Prompt(keyed.id, system, f"{system}\n{keyed.system}\n{asked}")
