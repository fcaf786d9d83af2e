"""What is made of many captures and may still have words that only one person said: dictionaries, templates, invented names.

A trace is looked for in the captures that are to go, and dropped again as soon as one that stays has it too: it is then not theirs
alone. What is left is removed after they are gone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson
import sqlalchemy as sa
from sqlmodel import Session, col, delete, select

from store import captures, shared
from store import tasks as identity
from store.blobs import BadFrame
from store.capture import DICTIONARIES, KINDS
from store.session import Database
from store.tables import Capture, Clustering, Dictionary, Task, TaskAlias, TaskTemplate

PAGE = 200  # captures read in one transaction


@dataclass
class Traces:
    """What only captures that are to go have."""

    windows: dict[int, set[bytes]] = field(default_factory=dict)  #: runs of words, by dictionary
    segments: dict[str, set[str]] = field(default_factory=dict)  #: fixed texts, by template
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)  #: by key: the name invented for it, its system text

    def __bool__(self) -> bool:
        return any(self.windows.values()) or any(self.segments.values()) or bool(self.keys)


def only(db: Database, task_id: str, going: set[str], theirs: Iterable[Capture]) -> Traces:
    """What `theirs`, the task's captures that are `going`, have and no other capture of the task."""
    with db.read() as session:
        contents = {each.id: each.content() for each in _dictionaries(session, task_id)}
        templates = session.exec(select(TaskTemplate).where(TaskTemplate.task_id == task_id)).all()
    found = Traces({id: set() for id in contents}, {template.id: set() for template in templates})
    looked: set[bytes] = set()
    for capture in theirs:
        new = _windows(capture) - looked
        looked |= new
        for id, content in contents.items():
            found.windows[id] |= {window for window in new if window in content}
        key, prompt = _prompt(capture)
        found.keys |= key
        for template in templates:
            found.segments[template.id] |= {segment for segment in template.segments if segment in prompt}
    for capture in _staying(db, task_id, going) if found else ():
        _drop(found, capture)
        if not found:
            break
    return found


def remove(db: Database, traces: Traces) -> int:
    """Remove them. Returns how many dictionaries had some: what is packed with those is packed anew, some at a time."""
    if not traces:
        return 0
    had = [id for id, windows in traces.windows.items() if windows]
    with db.begin() as session:
        for id in had:
            captures.withdraw(session, id)
        for template_id, segments in traces.segments.items():
            if segments and (template := session.get(TaskTemplate, template_id)) is not None:
                _empty(session.get(Task, template.task_id), segments)
                session.delete(template)
        for key, (name, system) in traces.keys.items():
            if (alias := session.get(TaskAlias, key)) is not None and alias.name.startswith(name):
                alias.name = ""
            _empty(session.get(Task, key), {system.replace("\0", "")})
    for id in had:
        while True:
            with db.begin() as session:
                if not captures.repack(session, id):
                    break
    return len(had)


def _empty(task: Task | None, theirs: Iterable[str]) -> None:
    """Empty a task's system text if one of their texts is in it, and take back the name that was made of it."""
    if task is not None and any(text in task.system for text in theirs if text):
        task.system = ""
        task.name = task.id if task.steered_at is None and task.shape else task.name


def blank(session: Session, task_id: str) -> None:
    """The task has no captures any more: nothing of their words stays with it."""
    session.execute(delete(TaskTemplate).where(col(TaskTemplate.task_id) == task_id))
    session.execute(delete(Clustering).where(col(Clustering.task_id) == task_id))
    session.get_one(Task, task_id).system = ""


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
    key, prompt = _prompt(capture)
    for each in key:
        traces.keys.pop(each, None)
    for segments in traces.segments.values():
        segments -= {segment for segment in segments if segment in prompt}


def _staying(db: Database, task_id: str, going: set[str]) -> Iterator[Capture]:
    """The task's other captures, newest first."""
    before = "~"
    while True:
        query = select(Capture).where(Capture.task_id == task_id, col(Capture.id) < before).order_by(col(Capture.id).desc())
        with db.read() as session:
            page = session.exec(query.limit(PAGE)).all()
            yield from (capture for capture in page if capture.id not in going)
        if not page:
            return
        before = page[-1].id


def _windows(capture: Capture) -> set[bytes]:
    try:
        return shared.windows(capture.request) | shared.windows(capture.response)
    except BadFrame:  # of what nobody can read nothing is known
        return set()


def _prompt(capture: Capture) -> tuple[dict[str, tuple[str, str]], str]:
    """(its key, with the name that would be invented for it and its system text; the texts that templates are of)."""
    try:
        request = orjson.loads(capture.request)
        keyed = identity.identify({**request, "metadata": None}, None, capture.endpoint)
        return {keyed.id: (keyed.name, keyed.system)}, f"{keyed.system}\n{identity.asked_text(request, capture.endpoint)}"
    except (ValueError, TypeError, BadFrame):  # no JSON, no object, or nothing that can be read
        return {}, ""
