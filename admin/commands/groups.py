"""How commands are found, and how their errors are told."""

from typing import Any

import typer
from typer.core import TyperGroup


class Main(TyperGroup):
    """Problems are told in a line on stderr, with exit code 1; tracebacks are for defects. Help lists commands by panel."""

    def invoke(self, ctx: Any) -> Any:
        from admin.problems import Problem

        try:
            return super().invoke(ctx)
        except Problem as problem:
            typer.echo(f"Error: {problem.message}", err=True)
            raise typer.Exit(1) from problem
        except ValueError as error:
            if not (wrong := _bad_settings(error)):
                raise
            typer.echo(f"Error: {wrong}", err=True)
            raise typer.Exit(1) from error
        except BrokenPipeError:  # `stillroom export | head`
            raise
        except OSError as error:  # a file or folder that the person named
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, command.get_short_help_str(100)))
        for panel, commands in panels.items():
            with formatter.section(panel):
                formatter.write_dl(commands)


def _bad_settings(error: ValueError) -> str | None:
    from pydantic import ValidationError

    from store.settings import explain

    return explain(error) if isinstance(error, ValidationError) and error.title.endswith("Settings") else None


class Noun(TyperGroup):
    """`stillroom task NAME` is `stillroom task show NAME`: what is no verb is the noun's name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args and args[0] in self.commands else ["show", *args])


def command_group(**options: Any) -> typer.Typer:
    """A Typer with plain help: drawing it with rich takes longer than all the rest."""
    return typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, **options)
