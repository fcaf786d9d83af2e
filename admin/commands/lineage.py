"""lineage, card, erase: where an adapter comes from, what is to be known of it, and whom to forget."""

from functools import partial
from typing import Annotated

import typer

from admin.commands import screen
from admin.commands.groups import command_group
from admin.commands.screen import AsJson, Why

app = command_group()
AdapterId = Annotated[str, typer.Argument(help="An adapter's id.")]


@app.command(rich_help_panel="Look")
def lineage(
    target: Annotated[str, typer.Argument(help="An adapter's id; or a capture's or pair's: which adapters learned from it.")],
    as_json: AsJson = False,
) -> None:
    """Check every hash from an adapter back to its captures. Exit code 1 if something is not what it was."""
    from admin import lineage as of

    with screen.database() as db:
        if target.startswith(("cap_", "pair_")):
            with db.read() as session:
                found = of.learners(session, target)
            if as_json:
                screen.emit(found)
                return
            rows = ([a.id, a.created_at, a.task, a.status, a.live, a.stale_since] for a in found)
            screen.table(["id", "time", "task", "status", "live", "stale"], rows, none="No adapter learned from it.")
            return
        checked = of.verify(db, target, screen.settings())
    if as_json:
        screen.emit(checked)
    else:
        for hop in checked.hops:
            state = "broken" if hop.failures else "whole"
            typer.echo(f"{state:7} {hop.name}: {hop.checked} checked, {hop.failures} not what they were")
            for line in (*hop.broken, *hop.notes):
                typer.echo(f"        {line}")
    if not checked.whole:
        raise typer.Exit(1)


@app.command(rich_help_panel="Look")
def card(adapter_id: AdapterId) -> None:
    """An adapter's model card, as Markdown: data, recipe, verdict, hashes, limits."""
    from admin import lineage as of

    with screen.reading() as session:
        typer.echo(of.card(session, adapter_id, screen.settings()), nl=False)


@app.command(rich_help_panel="Decide")
def erase(
    user: Annotated[str | None, typer.Option(help="As requests name them: `user`, `safety_identifier` or `metadata.user`.")] = None,
    key: Annotated[str | None, typer.Option(help="A virtual key's label or id: all that came under it.")] = None,
    capture: Annotated[list[str] | None, typer.Option(help="A capture's or pair's id; may be given several times.")] = None,
    take_back: Annotated[bool, typer.Option("--take-back", help="Live adapters that learned from it stop answering now.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Forget a user, or captures: all that is made of them is deleted, and adapters that learned from them are trained again."""
    from admin import erase as erasing

    wanted = erasing.wanted(user=user, key=key, captures=capture or [])
    if not yes:
        typer.confirm("What is erased is gone for good. Go on?", abort=True, err=True)
    with screen.database() as db:
        say, by = partial(typer.echo, err=True), screen.person()
        report = erasing.erase(db, screen.settings(), wanted, by=by, why=why, take_back=take_back, say=say)
    if as_json:
        screen.emit(report)
        return
    screen.fields({name: value for name, value in report if name != "notes"})
    for note in report.notes:
        typer.echo(f"Note: {note}")
