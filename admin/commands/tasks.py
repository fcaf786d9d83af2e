"""tasks; task NAME, and what its owner decides; train, promote, rollback."""

from typing import Annotated, Any

import typer

from admin.commands import screen
from admin.commands.groups import Noun, command_group
from admin.commands.screen import AfterOption, AsJson, LimitOption, Why
from store.states import TaskStatus

app = command_group()
noun = command_group(cls=Noun, help="One task: `task NAME` shows it, the verbs change it.")
app.add_typer(noun, name="task", rich_help_panel="Look")
many = typer.Typer(help="Every task; its verbs merge and divide tasks.", rich_markup_mode=None)
app.add_typer(many, name="tasks", rich_help_panel="Look")
Name = Annotated[str, typer.Argument(help="The task's name or id.")]


@many.callback(invoke_without_command=True)
def tasks(context: typer.Context, after: AfterOption = None, limit: LimitOption = 50, as_json: AsJson = False) -> None:
    """Every task: pairs, who answers, what happens next."""
    from admin import tasks

    if context.invoked_subcommand is not None:
        return
    with screen.reading() as session:
        page = tasks.listing(session, after=after, limit=limit)
    if as_json:
        screen.emit(page)
        return
    show(page.data, more=page.data[-1].id if page.has_more else None)


def show(lines: Any, more: str | None = None) -> None:
    """Tasks' lines as a table."""
    screen.table(
        ["name", "status", "captures", "train", "holdout", "answered by", "verdict", "next"],
        (
            [
                t.name,
                t.status,
                t.captures,
                t.pairs.train,
                t.pairs.holdout,
                t.incumbent or "teacher",
                t.verdict.outcome if t.verdict else None,
                t.next,
            ]
            for t in lines
        ),
        none="No tasks yet. Point a client at the proxy, or import recorded exchanges with `stillroom import FILE`.",
        more=more,
    )


@noun.command("show")
def show_task(name: Name, as_json: AsJson = False) -> None:
    """One task, with its policy."""
    from admin import tasks

    with screen.reading() as session:
        _show(tasks.one(session, name), as_json)


@noun.command("set")
def set_policy(
    name: Name,
    changes: Annotated[
        list[str], typer.Argument(help="key=value; `key=` takes a key back to its default.", metavar="KEY=VALUE...")
    ],
    as_json: AsJson = False,
) -> None:
    """Change its policy."""
    from admin import tasks
    from admin.problems import Invalid

    wanted: dict[str, str | None] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise Invalid(f"{change!r} is not key=value.", "bad_policy")
        wanted[key.strip()] = value.strip() or None
    with screen.writing() as session:
        tasks.decide(session, name, wanted, by=screen.person())
        _show(tasks.one(session, name), as_json)


@noun.command("rename")
def rename(name: Name, new_name: str, as_json: AsJson = False) -> None:
    """Give it another name."""
    from admin import tasks

    with screen.writing() as session:
        task = tasks.rename(session, name, new_name, by=screen.person())
        _show(tasks.one(session, task.id), as_json)


@noun.command("pause")
def pause(name: Name, as_json: AsJson = False) -> None:
    """No new training."""
    _set_status(name, TaskStatus.PAUSED, as_json)


@noun.command("resume")
def resume(name: Name, as_json: AsJson = False) -> None:
    """Capture, train and serve again."""
    _set_status(name, TaskStatus.ACTIVE, as_json)


@noun.command("ignore")
def ignore(name: Name, as_json: AsJson = False) -> None:
    """Leave it to the teacher for good."""
    _set_status(name, TaskStatus.IGNORED, as_json)


@many.command("merge")
def merge(
    kept: Annotated[str, typer.Argument(help="The task that stays, by name or id.", metavar="KEPT")],
    others: Annotated[list[str], typer.Argument(help="Those that are merged into it.", metavar="OTHER...")],
    why: Why = "a person decided",
    as_json: AsJson = False,
) -> None:
    """Merge tasks: requests and captures of the others are the first one's from now on."""
    from admin import tasks

    with screen.writing() as session:
        task = tasks.merge(session, kept, others, by=screen.person(), why=why)
        session.flush()
        _show(tasks.one(session, task.id), as_json)


@many.command("split")
def split(
    name: Name,
    containing: Annotated[str, typer.Option(help="A text that the new task's requests have: system message or first question.")],
    new_name: Annotated[str, typer.Option("--name", help="The new task's name.")],
    as_json: AsJson = False,
) -> None:
    """Divide a task: requests that have a text are a task of their own from now on; captures follow in the background."""
    from admin import tasks

    with screen.writing() as session:
        task = tasks.split(session, name, containing, new_name, by=screen.person())
        session.flush()
        _show(tasks.one(session, task.id), as_json)


@many.command("ignore")
def ignore_task(name: Name, as_json: AsJson = False) -> None:
    """Leave a task to the teacher for good."""
    _set_status(name, TaskStatus.IGNORED, as_json)


@app.command(rich_help_panel="Decide")
def train(name: Name, as_json: AsJson = False) -> None:
    """Train now, instead of when the policy says."""
    from admin import adapters, tasks

    with screen.writing() as session:
        task = adapters.train(session, name, by=screen.person())
        found = tasks.one(session, task.id)
    if as_json:
        screen.emit(found)
        return
    typer.echo(f"{found.name} is trained as soon as `stillroom distill` is free. `stillroom runs` shows how far it is.")


@app.command(rich_help_panel="Decide")
def promote(
    adapter: Annotated[str, typer.Argument(help="An adapter's id; or a task, for its latest accepted one.")],
    holdback: Annotated[float | None, typer.Option(help="The share that the teacher keeps. Default: the task's policy.")] = None,
    why: Why = "a person decided",
    as_json: AsJson = False,
) -> None:
    """Let an adapter answer, with or without the gate's word."""
    from admin import adapters

    with screen.writing() as session:
        found = adapters.promote(session, adapter, by=screen.person(), why=why, holdback=holdback)
    if as_json:
        screen.emit(found)
    elif found.live:
        typer.echo(f"{found.adapter_id} answers {found.task_id} now; the teacher keeps {found.holdback:.0%}.")
    else:
        typer.echo(f"{found.adapter_id} answers {found.task_id} as soon as vLLM has loaded it. `stillroom adapters` tells when.")


@app.command(rich_help_panel="Decide")
def rollback(name: Name, why: Why = "a person decided", as_json: AsJson = False) -> None:
    """The teacher answers again, within seconds, whatever else is down."""
    from admin import adapters, tasks

    with screen.writing() as session:
        task = adapters.rollback(session, name, by=screen.person(), why=why)
        found = tasks.one(session, task.id)
    if as_json:
        screen.emit(found)
        return
    typer.echo(f"The teacher answers {found.name} again.")


def _set_status(name: str, status: TaskStatus, as_json: bool) -> None:
    from admin import tasks

    with screen.writing() as session:
        task = tasks.set_status(session, name, status, by=screen.person())
        _show(tasks.one(session, task.id), as_json)


def _show(task: Any, as_json: bool) -> None:
    if as_json:
        screen.emit(task)
        return
    decided = task.decided
    shown = task.policy or decided.items()  # what cannot be used is shown as it was decided
    policy = "\n".join(f"{key} = {screen.text(value)}{'  (decided)' if key in decided else ''}" for key, value in shown)
    screen.fields(
        {
            **{name: getattr(task, name) for name in ("name", "id", "status")},
            "what that means": task.status.sentence,
            "teacher model": task.teacher_model,
            "since": task.created_at,
            "known by": f"its template, and {task.merged} keys that were merged into it" if task.merged else None,
            "parts": ", ".join(task.parts) or None,
            "captures": task.captures,
            "pairs": f"{task.pairs.train} to train on, {task.pairs.validation} for validation, {task.pairs.holdout} held out, "
            f"{task.pairs.excluded} excluded",
            "answered by": f"{task.incumbent}, the teacher keeps {task.holdback:.0%}" if task.incumbent else "teacher",
            "verdict": f"{task.verdict.outcome}: {task.verdict.reason}" if task.verdict else None,
            "next": task.next,
            "policy": policy,
            "system": task.system,
        }
    )
