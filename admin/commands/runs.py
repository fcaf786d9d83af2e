"""runs, their searches and learning curves, run, evaluations, evaluation, adapters; routes, verdicts, audit."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from admin.commands import screen
from admin.commands.groups import command_group
from admin.commands.screen import AfterOption, AsJson, LimitOption, TaskOption, Why
from store.states import AdapterStatus, RunPurpose, RunStatus

app = command_group()
many = typer.Typer(help="Trainings; what searches and learning curves found.", rich_markup_mode=None)
app.add_typer(many, name="runs", rich_help_panel="Look")
Name = Annotated[str, typer.Argument(help="The task's name or id.")]


@many.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    task: TaskOption = None,
    status: RunStatus | None = None,
    purpose: RunPurpose | None = None,
    after: AfterOption = None,
    limit: LimitOption = 20,
    as_json: AsJson = False,
) -> None:
    """Trainings, newest first, with their progress."""
    from admin import runs, tasks

    if context.invoked_subcommand is not None:
        return
    with screen.reading() as session:
        task_id = tasks.find(session, task).id if task else None
        page = runs.listing(session, task_id=task_id, status=status, purpose=purpose, after=after, limit=limit)
    if as_json:
        screen.emit(page)
        return
    screen.table(
        ["id", "started", "task", "for", "status", "progress", "loss", "rows/s", "seconds", "expected", "error"],
        (
            [
                r.id,
                r.started_at,
                r.task,
                r.purpose if r.share == 1 else f"{r.purpose}, {r.share:.0%}",
                r.status,
                f"{r.progress:.0%}",
                r.loss,
                r.rows_per_second,
                r.train_seconds,
                r.estimated_seconds,
                r.error,
            ]
            for r in page.data
        ),
        none="No trainings yet. `stillroom tasks` says what each task waits for.",
        more=page.data[-1].id if page.has_more else None,
    )


@many.command("pareto")
def pareto(name: Name, as_json: AsJson = False) -> None:
    """A task's latest search: quality against cost and latency; the candidate is the cheapest that passes."""
    from admin import searches

    with screen.reading() as session:
        found = searches.pareto(session, name)
    if as_json:
        screen.emit(found)
        return
    screen.fields({name: value for name, value in found if name not in {"trials", "task_id"}})
    screen.table(
        [
            "trial",
            "",
            "status",
            "rate",
            "epochs",
            "rank",
            "stripped",
            "rows",
            "loss",
            "exact",
            "passes",
            "s/1,000",
            "ms",
            "seconds",
            "error",
        ],
        (
            [
                t.number,
                "chosen" if t.chosen else "front" if t.front else None,
                t.status,
                t.learning_rate,
                t.epochs,
                t.rank,
                t.strip,
                f"{t.share:.0%}",
                t.loss,
                None if t.exact is None else f"{t.exact:.1%}",
                None if t.chance is None else f"{t.chance:.0%}",
                None if t.answer_seconds is None else 1000 * t.answer_seconds,
                t.latency_ms,
                t.train_seconds,
                t.error,
            ]
            for t in found.trials
        ),
        none="No trials yet.",
    )


@many.command("curve")
def curve(name: Name, as_json: AsJson = False) -> None:
    """A task's latest learning curve, and whether more data will do."""
    from admin import searches

    with screen.reading() as session:
        found = searches.curve(session, name)
    if as_json:
        screen.emit(found)
        return
    screen.table(
        ["rows", "errors", "of", "error rate"],
        ([p.rows, p.errors, p.judged, f"{p.errors / p.judged:.1%}"] for p in found.points),
        none="",
    )
    typer.echo(found.says or "It is being measured.")


@many.command("judge-epoch")
def judge_epoch(
    run_id: Annotated[str, typer.Argument(help="A run's id.")],
    epoch: Annotated[int, typer.Argument(help="Which epoch, counted from 1.")],
    why: Why = "",
) -> None:
    """Have the adapter that a run left of one of its epochs (`keep_epochs` in the recipe) judged as a candidate."""
    from admin import runs

    with screen.writing() as session:
        adapter = runs.take_epoch(session, run_id, epoch, screen.settings(), by=screen.person(), why=why)
    typer.echo(f"{adapter.id} is a candidate: it is judged when vLLM has loaded it.")


@app.command(rich_help_panel="Look")
def run(run_id: Annotated[str, typer.Argument(help="Its id.")], as_json: AsJson = False) -> None:
    """One training, with its loss curve."""
    from admin import runs

    with screen.reading() as session:
        found = runs.one(session, run_id, screen.settings())
    if as_json:
        screen.emit(found)
        return
    screen.fields(
        {
            **{name: value for name, value in found if name not in {"curve", "progress", "recipe"}},
            "progress": f"{found.progress:.0%}",
            "what that means": found.status.sentence,
            "recipe": found.recipe,
            "loss": _curve([point.loss for point in found.curve]),
        }
    )


@app.command(rich_help_panel="Look")
def evaluations(task: TaskOption = None, after: AfterOption = None, limit: LimitOption = 20, as_json: AsJson = False) -> None:
    """How students did on what they had never seen, newest first."""
    from admin import runs, tasks

    with screen.reading() as session:
        page = runs.evaluations(session, task_id=tasks.find(session, task).id if task else None, after=after, limit=limit)
    if as_json:
        screen.emit(page)
        return
    screen.table(
        ["id", "time", "task", "adapter", "status", "answered", "agreed", "hard errors", "verdict"],
        (
            [e.id, e.created_at, e.task, e.adapter_id, e.status, f"{e.answered}/{e.total}", e.agreed, e.hard_errors, e.outcome]
            for e in page.data
        ),
        none="No evaluations yet. They follow a training.",
        more=page.data[-1].id if page.has_more else None,
    )


@app.command(rich_help_panel="Look")
def evaluation(
    evaluation_id: Annotated[str, typer.Argument(help="Its id.")],
    after: AfterOption = None,
    limit: LimitOption = 20,
    as_json: AsJson = False,
) -> None:
    """One evaluation and its items, disagreements first."""
    from admin import runs
    from store.answers import text_of

    with screen.reading() as session:
        found = runs.evaluation(session, evaluation_id)
        page = runs.items(session, evaluation_id, after=after, limit=limit)
    if as_json:
        screen.emit(runs.EvaluationDetail(**found.model_dump(), items=page))
        return
    screen.fields({name: value for name, value in found if name not in {"task_id"}})
    screen.table(
        ["pair", "agrees", "prompt", "teacher", "student"],
        (
            [
                i.pair_id,
                i.agrees,
                *(screen.line(each, 40) for each in (i.prompt, text_of(i.t0), text_of(i.s) if i.s else i.error)),
            ]
            for i in page.data
        ),
        none="No items yet.",
        more=page.data[-1].pair_id if page.has_more else None,
    )


@app.command(rich_help_panel="Look")
def adapters(
    task: TaskOption = None,
    status: AdapterStatus | None = None,
    after: AfterOption = None,
    limit: LimitOption = 20,
    as_json: AsJson = False,
) -> None:
    """Trained students, newest first."""
    from admin import adapters, tasks

    with screen.reading() as session:
        task_id = tasks.find(session, task).id if task else None
        page = adapters.listing(session, task_id=task_id, status=status, after=after, limit=limit)
    if as_json:
        screen.emit(page)
        return
    screen.table(
        ["id", "time", "task", "status", "verdict", "stage", "live", "base model", "detail"],
        (
            [a.id, a.created_at, a.task, a.status, a.outcome, a.stage, a.live, a.base_model, screen.line(a.detail)]
            for a in page.data
        ),
        none="No adapters yet. They come of trainings: `stillroom runs`.",
        more=page.data[-1].id if page.has_more else None,
    )


@app.command(rich_help_panel="Look")
def routes(after: AfterOption = None, limit: LimitOption = 50, as_json: AsJson = False) -> None:
    """Who answers each task now; a task that is not here belongs to the teacher."""
    columns = ["task id", "adapter", "holdback", "version", "since", "by"]
    _records(
        "routes",
        columns,
        lambda r: [r.task_id, r.adapter_id or "teacher", f"{r.holdback:.0%}", r.version, r.updated_at, r.updated_by],
        none="No routes: the teacher answers everything.",
        after=after,
        limit=limit,
        as_json=as_json,
    )


@app.command(rich_help_panel="Look")
def verdicts(task: TaskOption = None, after: AfterOption = None, limit: LimitOption = 20, as_json: AsJson = False) -> None:
    """The gate's decisions, newest first."""
    _records(
        "verdicts",
        ["id", "time", "adapter", "outcome", "says"],
        lambda v: [v.id, v.created_at, v.adapter_id, v.outcome, v.reason],
        none="No verdicts yet. They follow an evaluation.",
        task=task,
        after=after,
        limit=limit,
        as_json=as_json,
    )


@app.command(rich_help_panel="Look")
def audit(task: TaskOption = None, after: AfterOption = None, limit: LimitOption = 20, as_json: AsJson = False) -> None:
    """Who did what, newest first."""
    _records(
        "audit",
        ["id", "time", "by", "action", "subject", "detail"],
        lambda e: [e.id, e.created_at, e.actor, e.action, e.subject, screen.line(e.detail, 100)],
        none="Nothing was done yet.",
        task=task,
        after=after,
        limit=limit,
        as_json=as_json,
    )


def _records(
    plural: str,
    columns: Sequence[str],
    row: Callable[[Any], list[Any]],
    *,
    none: str,
    after: str | None,
    limit: int,
    as_json: bool,
    task: str | None = None,
) -> None:
    from admin import records, tasks

    kind = records.KINDS[plural]
    with screen.reading() as session:
        task_id = tasks.find(session, task).id if task else None
        page = records.listing(session, kind, task_id=task_id, after=after, limit=limit)
    if as_json:
        screen.emit(page)
        return
    last = str(getattr(page.data[-1], kind.by[-1])) if page.has_more else None
    screen.table(columns, [row(each) for each in page.data], none=none, more=last)


def _curve(losses: list[float], width: int = 60) -> str:
    """A loss curve in a line: its ends, and how it went between them."""
    if not losses:
        return ""
    step = max(1, len(losses) / width)
    picked = [losses[int(i * step)] for i in range(min(width, len(losses)))]
    low, high = min(losses), max(losses)
    bars = "".join("▁▂▃▄▅▆▇█"[int(7 * (loss - low) / (high - low or 1))] for loss in picked)
    return f"{losses[0]:.4f} {bars} {losses[-1]:.4f}"
