"""token new, list, revoke: who may use the admin API."""

from typing import Annotated

import typer

from admin.commands import screen
from admin.commands.groups import command_group
from admin.commands.screen import AsJson

noun = command_group(help="Tokens of the admin API.")
app = command_group()
app.add_typer(noun, name="token", rich_help_panel="Decide")


@noun.command()
def new(label: Annotated[str, typer.Option(help="Who or what will use it.")], as_json: AsJson = False) -> None:
    """Make a token; it is shown only now, on stdout."""
    from admin import auth

    with screen.writing() as session:
        made = auth.NewToken(label=label, token=auth.make(session, label, by=screen.person()))
    if as_json:
        screen.emit(made)
        return
    typer.echo(made.token)


@noun.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """The tokens there are: their labels, never themselves."""
    from admin import auth

    with screen.reading() as session:
        found = auth.tokens(session)
    if as_json:
        screen.emit(found)
        return
    screen.table(["label", "made"], ([each.label, each.created_at] for each in found), none=f"No tokens. {auth.HOW}")


@noun.command()
def revoke(label: str, as_json: AsJson = False) -> None:
    """Close the API to a token, at once."""
    from admin import auth

    with screen.writing() as session:
        revoked = auth.revoke(session, label, by=screen.person())
    if as_json:
        screen.emit(revoked)
        return
    typer.echo(f"{label} is revoked.")
