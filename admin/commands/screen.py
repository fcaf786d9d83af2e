"""What all commands do alike: open the database, and show what they found, for people or as JSON."""

import getpass
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from sqlmodel import Session

    from admin.settings import AdminSettings
    from store.session import Database

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="A task's name or id.")]
AfterOption = Annotated[str | None, typer.Option("--after", help="Go on after the row with this id.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=200, help="Rows to show.")]
Note = Annotated[str, typer.Option("--note", help="Why, for whoever reads the history.")]
#: Columns that are cut to one line where there is little room; all others are whole, since people copy them.
TEXTS = {"prompt", "answer", "teacher", "student", "task", "next", "says", "detail", "error", "base model"}
#: Columns that are left out where there is no room for them, the first first. `--json` has everything.
DISPENSABLE = (
    "base model", "rows/s", "expected", "seconds", "for", "version", "since", "time", "started", "review", "loss", "live", "stage",
    "hard errors", "status", "train", "holdout", "split", "progress", "answered", "by", "detail", "task",
)  # fmt: skip
TEXT_WIDTH, GAP = 12, 2  # a text's least width, and what is between two columns
Why = Annotated[str, typer.Option("--why", help="The reason, for the audit log.")]


def settings() -> "AdminSettings":
    """The environment's settings. What is wrong with them is told by `groups.Main`."""
    from admin.settings import AdminSettings

    return AdminSettings()


@contextmanager
def database() -> "Iterator[Database]":
    from admin import schema

    with schema.opened(settings()) as db:
        yield db


@contextmanager
def reading() -> "Iterator[Session]":
    with database() as db, db.read() as session:
        yield session


@contextmanager
def writing() -> "Iterator[Session]":
    with database() as db, db.begin() as session:
        yield session


def person() -> str:
    """Who is at the keyboard, for reviews and the audit log."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        name = f"uid {os.getuid()}"
    return f"cli: {name}"


def emit(found: "BaseModel | Sequence[BaseModel]") -> None:
    """JSON on stdout."""
    import orjson

    data = found.model_dump(mode="json") if hasattr(found, "model_dump") else [each.model_dump(mode="json") for each in found]
    sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n")


def console() -> "Console":
    from rich.console import Console

    return Console(markup=False, highlight=False, width=shutil.get_terminal_size((200, 50)).columns)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, none: str, more: str | None = None) -> None:
    """A table for people; `none` is said when there is nothing; `more` is the id to go on after."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = {name: list(column) for name, column in zip(columns, zip(*_shown(rows), strict=True), strict=False)}
    if not cells:
        typer.echo(none)
        return
    out = console()
    widths = fit({name: max(map(cell_len, [name, *column])) for name, column in cells.items()}, out.width)
    out.width = max(out.width, sum(widths.values()) + GAP * len(widths))  # what must stay whole goes on in the next line
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name, width in widths.items():
        shown.add_column(name, width=width, no_wrap=True, overflow="ellipsis")
    for row in zip(*(cells[name] for name in widths), strict=True):
        shown.add_row(*map(Text, row))
    out.print(shown)
    if more is not None:
        typer.echo(f"There are more: --after {more}", err=True)


def fit(wanted: dict[str, int], room: int) -> dict[str, int]:
    """The columns that are shown in `room` characters, and how wide: texts shrink, then what is dispensable goes."""
    kept = dict(wanted)
    for name in DISPENSABLE:
        if sum(min(width, TEXT_WIDTH) if each in TEXTS else width for each, width in kept.items()) + GAP * (len(kept) - 1) <= room:
            break
        kept.pop(name, None)
    texts = sorted((name for name in kept if name in TEXTS), key=lambda name: kept[name])
    left = room - GAP * (len(kept) - 1) - sum(width for name, width in kept.items() if name not in TEXTS)
    for number, name in enumerate(texts):  # the shortest first: what it does not need is for the others
        kept[name] = min(kept[name], max(TEXT_WIDTH, left // (len(texts) - number)))
        left -= kept[name]
    return kept


def fields(values: dict[str, Any]) -> None:
    """A row for people, a line a field; what is empty is left out."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        if (shown := text(value)) != "":
            first, *rest = shown.splitlines()
            console().print(f"{name:{width}}  {first}", *(f"{'':{width}}  {line}" for line in rest), sep="\n", soft_wrap=True)


def text(value: Any) -> str:
    """A value as people read it: local times, states as they are called, numbers short."""
    import orjson

    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    if isinstance(value, dict | list):
        return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
    return str(value)


def _shown(rows: Iterable[Sequence[Any]]) -> list[list[str]]:
    return [[" ".join(text(value).split()) for value in row] for row in rows]


def line(value: Any, width: int = 60) -> str:
    """A text as one short line."""
    flat = " ".join(text(value).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def time_of(value: str | None) -> datetime | None:
    """A time that a person gave: ISO 8601, local where no zone is given. Raises Invalid."""
    from admin.problems import Invalid

    try:
        found = datetime.fromisoformat(value) if value else None
    except ValueError as error:
        raise Invalid(f"{value!r} is no time: give one such as 2026-03-01 or 2026-03-01T09:30.", "bad_time") from error
    return found if found is None or found.tzinfo else found.astimezone()
