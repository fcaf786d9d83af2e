"""teacher simulate, teacher replay: teachers to try things with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from admin.commands.groups import command_group

if TYPE_CHECKING:
    from fastapi import FastAPI

noun = command_group(help="Teachers to try things with: a simulation, or a recording.")
app = command_group()
app.add_typer(noun, name="teacher", rich_help_panel="Try")
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]


@noun.command()
def simulate(
    host: Host = "127.0.0.1",
    port: Port = 8090,
    latency_ms: Annotated[float, typer.Option(min=0, help="Median time to a whole answer, in milliseconds.")] = 400,
    disagreement: Annotated[float, typer.Option(min=0, max=0.5, help="How often two answers to one ticket differ.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Of latency and disagreement.")] = 0,
    key: Annotated[str | None, typer.Option(help="The API key it asks for; default: it asks for none.")] = None,
) -> None:
    """A SIMULATED teacher: triages support tickets by rules; no model."""
    from admin.teachers import simulate

    _serve(simulate.build(latency_ms=latency_ms, disagreement=disagreement, seed=seed, key=key), host, port)


@noun.command()
def replay(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Recorded exchanges: JSONL, plain or gzip.")],
    host: Host = "127.0.0.1",
    port: Port = 8090,
    latency_ms: Annotated[float, typer.Option(min=0, help="Time before each answer, in milliseconds.")] = 0,
) -> None:
    """Answer recorded requests with their recorded answers."""
    from admin.problems import Invalid
    from admin.teachers import replay

    try:
        teacher = replay.build(file, latency_ms=latency_ms)
    except replay.RecordingError as error:
        raise Invalid(str(error), "bad_recording") from error
    _serve(teacher, host, port)


def _serve(teacher: "FastAPI", host: str, port: int) -> None:
    import logging

    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    typer.echo(f"STILLROOM_TEACHER_URL=http://{host}:{port}/v1")
    uvicorn.run(teacher, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=5)
