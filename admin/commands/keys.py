"""keys list, add, edit, revoke: who may ask through the proxy."""

from typing import Annotated, Any

import typer

from admin.commands import screen
from admin.commands.groups import command_group
from admin.commands.screen import AfterOption, AsJson, LimitOption

noun = command_group(help="Keys of stillroom's own, for clients of the proxy.")
app = command_group()
app.add_typer(noun, name="keys", rich_help_panel="Decide")
Name = Annotated[str, typer.Argument(help="The key's label or id.")]
EXAMPLE = "tasks=NAME,NAME budget_usd=5 budget_period=month requests_per_minute=60 expires_at=2027-01-01"


@noun.command("list")
def list_keys(after: AfterOption = None, limit: LimitOption = 50, as_json: AsJson = False) -> None:
    """The keys there are: what they may do and have spent, never themselves."""
    from admin import keys

    with screen.reading() as session:
        page = keys.listing(session, after=after, limit=limit)
    if as_json:
        screen.emit(page)
        return
    screen.table(
        ["label", "state", "ends", "tasks", "budget", "spent", "a minute", "since", "id"],
        (
            [key.label, key.status, f"…{key.last4}", key.tasks, _budget(key), f"${key.spent_usd:.2f}", key.requests_per_minute,
             key.created_at, key.id]
            for key in page.data
        ),
        none="No keys: each client's own is passed on, or the operator's is used. `stillroom keys add LABEL` makes one.",
        more=page.data[-1].id if page.has_more else None,
    )  # fmt: skip


@noun.command()
def add(
    label: Annotated[str, typer.Argument(help="Who or what will use it.")],
    rules: Annotated[list[str] | None, typer.Argument(help=f"What it may do: {EXAMPLE}", metavar="[RULE=VALUE]...")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is shown only now, on stdout."""
    from admin import keys

    with screen.writing() as session:
        made = keys.make(session, keys.read(keys.Wanted, {**_rules(rules or []), "label": label}), by=screen.person())
    if as_json:
        screen.emit(made)
        return
    typer.echo(made.key)


@noun.command()
def edit(
    name: Name,
    rules: Annotated[list[str], typer.Argument(help=f"label=NAME {EXAMPLE}; `rule=` takes a limit away.", metavar="RULE=VALUE...")],
    as_json: AsJson = False,
) -> None:
    """Change what a key may do; the proxies follow within a second."""
    from admin import keys

    with screen.writing() as session:
        changed = keys.change(session, name, keys.read(keys.Changes, _rules(rules)), by=screen.person())
    if as_json:
        screen.emit(changed)
        return
    shown = {**changed.model_dump(exclude={"last4"}), "budget_usd": _budget(changed)}
    screen.fields({name: value for name, value in shown.items() if name != "budget_period"})


@noun.command()
def revoke(name: Name, as_json: AsJson = False) -> None:
    """Close the proxies to a key for good, within a second."""
    from admin import keys

    with screen.writing() as session:
        revoked = keys.revoke(session, name, by=screen.person())
    if as_json:
        screen.emit(revoked)
        return
    typer.echo(f"{revoked.label} is revoked.")


def _rules(given: list[str]) -> dict[str, Any]:
    """`["tasks=a,b", "budget_usd="]` as `{"tasks": ["a", "b"], "budget_usd": None}`. Raises Invalid."""
    from admin.problems import Invalid

    rules: dict[str, Any] = {}
    for each in given:
        name, equals, value = (part.strip() for part in each.partition("="))
        if not equals:
            raise Invalid(f"{each!r} is not rule=value, such as {EXAMPLE}.", "bad_key")
        rules[name] = value or None
        if name == "tasks" and value:
            rules[name] = [task for part in value.split(",") if (task := part.strip())]
        elif name == "expires_at":
            rules[name] = screen.time_of(value or None)
    return rules


def _budget(key: Any) -> str | None:
    if key.budget_usd is None:
        return None
    return f"${key.budget_usd:.2f}{' a month' if key.budget_period == 'month' else ''}"
