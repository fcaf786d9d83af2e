"""export, import: pairs out, recorded exchanges in."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from admin.commands import screen
from admin.commands.groups import command_group
from admin.commands.screen import AsJson
from store.states import Split

app = command_group()


@app.command(rich_help_panel="Move")
def export(
    task: Annotated[str, typer.Argument(help="The task's name or id.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; default: stdout.")] = None,
    split: Annotated[Split | None, typer.Option(help="Only the pairs trained on, or only those held out.")] = None,
) -> None:
    """A task's pairs as OpenAI fine-tuning JSONL: corrections applied, rejected ones left out."""
    import sys

    from admin import exporting, tasks

    with screen.database() as db:
        with db.begin() as session:
            task_id = tasks.find(session, task).id
            exporting.note(session, task_id, output, by=screen.person())
        count = 0
        with exporting.writing(output) if output else nullcontext(sys.stdout.buffer) as file:
            for line in exporting.lines(db, task_id, split):
                file.write(line)
                count += 1
            file.flush()
    typer.echo(f"{count} pairs written.", err=True)


@app.command("import", rich_help_panel="Move")
def import_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL, plain or gzip.")],
    task: Annotated[str | None, typer.Option(help="The task all lines belong to; else each line's own.")] = None,
    model: Annotated[str | None, typer.Option(help="The teacher's model, for lines that name none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recorded exchanges in: OpenAI fine-tuning lines, or recordings {"request", "response"}."""
    from admin import importing

    with screen.database() as db, file.open("rb") as lines:
        report = importing.load(db, lines, source=file.name, task=task, model=model, by=screen.person())
    if as_json:
        screen.emit(report)
    else:
        for error in report.errors:
            typer.echo(f"{file}:{error.line}: {error.reason}", err=True)
        if report.failed > len(report.errors):
            typer.echo(f"... and {report.failed - len(report.errors)} more", err=True)
        typer.echo(f"{report.imported} imported, {report.duplicates} there already, {report.failed} left out.")
        for name, count in report.tasks.items():
            typer.echo(f"  {count} to {name}")
    if report.imported + report.duplicates == 0:
        raise typer.Exit(1)
