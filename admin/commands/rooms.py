"""up, proxy, distill, serving, admin, demo: what runs. status, doctor: how it is."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from admin.commands import screen
from admin.commands.groups import command_group
from admin.commands.screen import AsJson, LimitOption

app = command_group()

WorkersOption = Annotated[
    int | None, typer.Option(min=1, max=256, help="Processes of the proxy that answer requests. Default: STILLROOM_WORKERS, or 1.")
]


@app.command(rich_help_panel="Run")
def up(
    without: Annotated[str, typer.Option(help="Rooms to leave out, such as distill,serving.", metavar="ROOM,...")] = "",
    workers: WorkersOption = None,
) -> None:
    """Everything, supervised: proxy, distill, serving with vLLM, admin. Ctrl-C stops it."""
    from admin import up

    if workers is not None:
        os.environ["STILLROOM_WORKERS"] = str(workers)

    raise typer.Exit(up.run(screen.settings(), [room.strip() for room in without.split(",") if room.strip()]))


@app.command(rich_help_panel="Run")
def proxy(workers: WorkersOption = None) -> None:
    """The proxy alone."""
    _become("proxy", *([] if workers is None else ["--workers", str(workers)]))


@app.command(rich_help_panel="Run")
def distill() -> None:
    """Pairs, training, evaluation and gate alone."""
    _become("distill")


@app.command(rich_help_panel="Run")
def serving() -> None:
    """vLLM and its adapters alone."""
    _become("serving")


@app.command(rich_help_panel="Run")
def admin() -> None:
    """The admin API alone."""
    _become("admin")


@app.command(rich_help_panel="Run")
def demo(
    summary: Annotated[Path, typer.Option(help="Where to write what was seen.")] = Path("demo-summary.json"),
    home: Annotated[Path | None, typer.Option(help="Folder to use and to keep. Default: a temporary one.")] = None,
    models: Annotated[Path | None, typer.Option(help="Where prepared base models are kept. Default: as `up` keeps them.")] = None,
    requests: Annotated[int | None, typer.Option(min=900, help="How many to learn from; the gate needs so many.")] = None,
    teacher: Annotated[
        str, typer.Option(help="The model of OpenAI's to ask, if you want it in place of the simulation.")
    ] = "gpt-4o-mini",
) -> None:
    """The whole wheel in front of your eyes, in about ten minutes.

    With OPENAI_API_KEY in the environment, on a terminal, you are asked whether the real API should be the teacher.
    """
    from admin.problems import not_installed

    try:
        from admin import demo
        from serving.settings import ServingSettings
    except ModuleNotFoundError as missing:
        raise not_installed(f"What the demo needs ({missing.name})") from missing
    plan = demo.Plan() if requests is None else demo.Plan(requests=requests)
    real = False
    if "OPENAI_API_KEY" in os.environ and sys.stdin.isatty():
        count = round(plan.requests * (1 + 2 * plan.holdout)) + plan.fresh + plan.outage  # what is held out is asked twice again
        real = typer.confirm(f"Send about {count} short requests to OpenAI's {teacher}, at your expense, instead of a simulation?")
    folder = models or ServingSettings().models_path
    raise typer.Exit(demo.run(plan, summary, folder.resolve(), real_teacher=teacher if real else None, home=home))


@app.command(rich_help_panel="Look")
def status(limit: LimitOption = 50, as_json: AsJson = False) -> None:
    """Every task and who answers it; processes, vLLM, spool."""
    from admin import status
    from admin.commands import tasks

    with screen.reading() as session:
        found = status.collect(session, screen.settings(), limit=limit)
    if as_json:
        screen.emit(found)
        return
    running = f"running (pid {found.up})" if found.up else "not running here: `stillroom up` starts it"
    screen.fields(
        {
            "home": found.home,
            "up": running,
            **{room.room: f"pid {room.pid}, {room.seconds:.0f} s, {room.memory_mib} MiB" for room in found.rooms},
            **{f"vLLM {e.id}": f"{e.status}, {e.base_model}, {len(e.loaded)} adapters. {e.detail}" for e in found.engines},
            "spool": f"{found.spool.bytes:,} bytes" + (f", {found.spool.rejected} rejected" if found.spool.rejected else ""),
        }
    )
    typer.echo("")
    tasks.show(found.tasks)
    if found.more_tasks:
        typer.echo("These are the busiest; `stillroom tasks` has them all.", err=True)


@app.command(rich_help_panel="Look")
def doctor(as_json: AsJson = False) -> None:
    """Is everything there that is needed? What is missing, and what to do. Exit code 1 if stillroom cannot run."""
    from admin import doctor

    checks = doctor.examine(screen.settings())
    if as_json:
        screen.emit(checks)
    else:
        screen.fields({check.name: f"{check.mark:8}{check.says}" for check in checks})
    if any(check.mark == doctor.Mark.FAILED for check in checks):
        raise typer.Exit(1)


def _become(room: str, *options: str) -> None:
    """Turn this process into the room's."""
    from admin.problems import Unavailable
    from admin.supervisor import room_command, room_environment
    from admin.up import not_runnable

    screen.settings()
    if why := not_runnable(room):
        raise Unavailable(f"{room} cannot run here. {why}", "not_installed")
    os.execve(sys.executable, [*room_command(room), *options], {**os.environ, **room_environment()})  # noqa: S606 - no shell is the point
