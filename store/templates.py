"""Templates: what stays fixed in a task's prompts, and the requests that are known by it.

Learned offline from many prompts (`distill.discovery`), or given by a person who splits a task; read by whoever names the task of a
request. A prompt fits a template if it has the template's segments, in their order, with no more between two of them than was ever
seen there, and some. What the segments leave open (dates, names, passages, examples in any order) may be anything.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from store.tables import Task, TaskAlias, TaskTemplate

DISCOVERY = "discovery"  #: who changes aliases and templates that no person changed
ANY = 1_000_000_000  #: a gap's length where it does not matter
_KEY = 16  # characters by which a template is looked up
_DEPTH = 4  # tasks within tasks
_SECONDS = 30.0  # after which all is read again, whatever its version says


@dataclass(frozen=True)
class Template:
    """Segments of text, and the most characters there may be before each and behind the last: one more gap than segments."""

    task_id: str
    segments: tuple[str, ...]
    gaps: tuple[int, ...]

    def fits(self, text: str) -> bool:
        """Whether the text is of this template. A microsecond or two."""
        if not self.segments:
            return False
        at = 0
        for segment, gap in zip(self.segments[:-1], self.gaps, strict=False):
            found = text.find(segment, at, at + gap + len(segment))
            if found < 0:
                return False
            at = found + len(segment)
        last, gap = self.segments[-1], self.gaps[-2]
        # as far behind as it can be: what it is followed by has a limit as well
        found = text.rfind(last, at, at + gap + len(last))
        return found >= 0 and len(text) - found - len(last) <= self.gaps[-1]

    @cached_property
    def weight(self) -> int:
        """Characters that are fixed: of two templates that fit, the one that says more is right."""
        return sum(map(len, self.segments))


class Shelf:
    """The templates of one scope, looked up by how a text begins or ends where they are fixed there."""

    def __init__(self, templates: Iterable[Template]) -> None:
        self._heads: dict[str, list[Template]] = {}
        self._tails: dict[str, list[Template]] = {}
        self._others: list[Template] = []
        for template in sorted(templates, key=lambda each: -each.weight):
            if not template.segments:
                continue
            first, last = template.segments[0], template.segments[-1]
            if template.gaps[0] == 0 and len(first) >= _KEY:
                self._heads.setdefault(first[:_KEY], []).append(template)
            elif template.gaps[-1] == 0 and len(last) >= _KEY:
                self._tails.setdefault(last[-_KEY:], []).append(template)
            else:
                self._others.append(template)

    def find(self, text: str) -> Template | None:
        """The template that the text fits; of several the one with the most that is fixed."""
        best: Template | None = None
        for templates in (self._heads.get(text[:_KEY], ()), self._tails.get(text[-_KEY:], ()), self._others):
            for template in templates:
                if best is not None and best.weight >= template.weight:
                    break
                if template.fits(text):
                    best = template
        return best


@dataclass(frozen=True)
class Directory:
    """Which task a request belongs to that is not, or not only, told by its key. Immutable: a newer one takes its place."""

    aliases: Mapping[str, str] = field(default_factory=dict)  #: ids of keys and of tasks that were merged away -> the task
    called: Mapping[str, str] = field(default_factory=dict)  #: names of tasks that were merged away -> the task
    names: Mapping[str, str] = field(default_factory=dict)  #: of all tasks that this directory leads to
    shelves: Mapping[str, Shelf] = field(default_factory=dict)  #: by scope: a shape, or the task that is divided
    exact: bool = False  #: a key may lead elsewhere than the template that its prompt fits
    version: tuple[object, ...] = ()
    read_at: float = 0.0

    def place(self, key: str, shape: str, system: str, asked: Callable[[], str]) -> str:
        """The task of a request whose key is this; `asked` gives its first user message, where that matters.

        A request that nothing is known of has its key's own task.
        """
        found = self.aliases.get(key)
        if found is None:
            shelf = self.shelves.get(shape)
            template = shelf.find(system) if shelf is not None and system else None
            found = template.task_id if template is not None else key
        return self.within(found, system, asked)

    def within(self, task_id: str, system: str, asked: Callable[[], str]) -> str:
        """Where a task is divided: the part that the request belongs to, else the task itself."""
        for _ in range(_DEPTH):
            shelf = self.shelves.get(task_id)
            if shelf is None:
                break
            template = shelf.find(asked()) or shelf.find(system)
            if template is None or template.task_id == task_id:
                break
            task_id = template.task_id
        return task_id


NOTHING = Directory()


def read(session: Session, before: Directory = NOTHING) -> Directory:
    """The directory as it is now; the one from before where nothing has changed, which takes one small query."""
    version = _version(session)
    if version == before.version and time.monotonic() - before.read_at < _SECONDS:
        return before
    of_aliases = (col(TaskAlias.id), col(TaskAlias.name), col(TaskAlias.task_id), col(TaskAlias.changed_by))
    rows = session.execute(sa.select(*of_aliases)).all()
    aliases = [(id_, name, task_id) for id_, name, task_id, _ in rows]
    columns = (col(TaskTemplate.scope), col(TaskTemplate.task_id), col(TaskTemplate.segments), col(TaskTemplate.gaps))
    scopes: dict[str, list[Template]] = {}
    for scope, task_id, segments, gaps in session.execute(sa.select(*columns)):
        if segments:
            scopes.setdefault(scope, []).append(Template(task_id, tuple(segments), tuple(gaps)))
    targets = {task_id for *_, task_id in aliases} | {each.task_id for templates in scopes.values() for each in templates}
    names = session.execute(sa.select(col(Task.id), col(Task.name))) if targets else ()
    return Directory(
        aliases={id_: task_id for id_, _, task_id in aliases},
        called={name: task_id for id_, name, task_id in aliases if name and id_ != task_id},
        names={id_: name for id_, name in names if id_ in targets},
        shelves={scope: Shelf(templates) for scope, templates in scopes.items()},
        exact=any(id_ == task_id or by != DISCOVERY for id_, _, task_id, by in rows),
        version=version,
        read_at=time.monotonic(),
    )


def _version(session: Session) -> tuple[object, ...]:
    """What changes whenever something of the directory does."""
    found = session.execute(
        sa.select(
            select(func.count()).select_from(TaskAlias).scalar_subquery(),
            select(func.max(TaskAlias.changed_at)).scalar_subquery(),
            select(func.count()).select_from(TaskTemplate).scalar_subquery(),
            select(func.max(TaskTemplate.changed_at)).scalar_subquery(),
            select(func.max(Task.steered_at)).scalar_subquery(),
        )
    ).one()
    return tuple(found)
