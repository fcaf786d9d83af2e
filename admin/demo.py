"""`stillroom demo`: the whole wheel in front of your eyes, with real parts and a simulated (or your own) teacher.

Everything lives in a temporary folder. Each stage counts as seen only when its rows, headers or processes show it;
the exit code is 0 only if every stage was seen and no request failed.
"""

import asyncio
import json
import os
import shutil
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlmodel import Session, col, func, select

from admin.rig import KEY, NotSeen, Rig, peak_memory, start
from admin.teachers import tickets
from store import children, policy
from store.states import EngineStatus, EvaluationStatus, Outcome, PairStatus, RunStatus, Server, Split
from store.tables import Capture, Engine, Evaluation, Pair, Route, Run, Task, Verdict

TASK = "support-triage"
# Many distinct tickets, each seen once, teach more in the same minutes than half as many seen twice.
RECIPE = "epochs = 1\nbatch_rows = 12\nlearning_rate = 2e-3\n"
# What the teacher's and the student's tokens cost, in dollars a million: gpt-4o's list price of 2025, and a machine you own.
PRICE_IN, PRICE_OUT = 2.50, 10.00


@dataclass(frozen=True)
class Plan:
    """How much of everything: enough for the gate to tell, little enough for ten minutes on two cores."""

    requests: int = 1500
    holdout: float = 0.35  # with this seed 503 of them: from 500 on the gate can tell whatever the teacher's noise
    fresh: int = 100
    outage: int = 24
    concurrency: int = 32  # of the traffic to learn from
    live_concurrency: int = 4  # of what a student answers: on two cores it is quick only while few ask at once
    teacher_latency_ms: float = 400
    seed: int = 7


@dataclass
class Sent:
    """What became of some requests, as the client saw it."""

    by: list[str] = field(default_factory=list)  #: teacher or student, from the header
    milliseconds: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)  #: the five fields are as the ticket says
    tokens: list[tuple[int, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def count(self, server: Server) -> int:
        return self.by.count(server.value)

    def p50(self, server: Server) -> float | None:
        times = [ms for ms, by in zip(self.milliseconds, self.by, strict=True) if by == server.value]
        return round(statistics.median(times), 1) if times else None


def run(plan: Plan, summary_path: Path, models: Path, *, real_teacher: str | None = None, home: Path | None = None) -> int:
    """Run the demo; returns the exit code.

    `models` keeps the prepared base model for the next time; `real_teacher` is a model of OpenAI's, asked with OPENAI_API_KEY;
    `home` is kept, the temporary folder used without it is removed after a success.
    """
    console = Console()
    temporary = home is None
    home = home or Path(tempfile.mkdtemp(prefix="stillroom-demo-"))
    home.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"passed": False}
    begun = time.monotonic()
    if real_teacher is None:
        teacher: list[str] | None = ["simulate", "--latency-ms", str(plan.teacher_latency_ms), "--key", KEY]
        key = KEY
    else:
        teacher, key = None, os.environ["OPENAI_API_KEY"]
    (home / "recipe.toml").write_text(RECIPE)
    settings = {"TICK_SECONDS": "2", "MODELS_DIR": str(models), "RECIPE": str(home / "recipe.toml")}
    try:
        with peak_memory() as peak, start(home, teacher, settings, key=key) as rig:
            try:
                _wheel(console, rig, plan, real_teacher or "gpt-sim", summary)
            finally:
                summary["peak_memory_gib"] = peak()
        summary["passed"] = summary["failed_requests"] == 0
    except NotSeen as missing:
        summary["error"] = str(missing)
        console.print(f"[bold red]Not seen:[/] {missing}\nLogs: {home / 'logs'}")
    summary["seconds"] = round(time.monotonic() - begun, 1)
    _print_summary(console, summary)
    summary_path.write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"Written to {summary_path}.")
    if temporary and summary["passed"]:
        shutil.rmtree(home)
    return 0 if summary["passed"] else 1


def _wheel(console: Console, rig: Rig, plan: Plan, model: str, summary: dict[str, Any]) -> None:
    """Every stage in its order; numbers go into the summary as they are known."""
    db = rig.db
    drawn = tickets.draw(plan.seed, plan.requests + plan.fresh + 2 * plan.outage + 1)
    first, later = drawn[: plan.requests], drawn[plan.requests :]
    fresh, outage, alone = later[: plan.fresh], later[plan.fresh : -plan.outage], later[-plan.outage :]
    failures: list[str] = []

    console.rule("1. The teacher answers, stillroom captures")
    opening = _send(console, rig, model, plan.concurrency, first[:1], "first request")
    task_id = rig.until(lambda s: s.exec(select(Task.id).where(Task.name == TASK)).first(), 30, "the task's row")
    with db.begin() as session:  # what `stillroom task set` does
        rule = policy.Policy(holdout=plan.holdout, first_pairs=plan.requests - 5)
        session.get_one(Task, task_id).policy = rule.model_dump(exclude_defaults=True)
    captured = _send(console, rig, model, plan.concurrency, first[1:], "requests, every third streamed")
    failures += opening.failures + captured.failures
    enough = plan.requests - len(failures)
    captures = select(func.count()).select_from(Capture).where(Capture.task_id == task_id)
    rig.until(lambda s: s.exec(captures).one() >= enough or None, 60, "all captures in the database")
    summary["captured"] = enough
    ready = select(func.count()).select_from(Pair).where(Pair.status == PairStatus.READY)
    summary["pairs_train"] = 0

    console.rule("2. A student is trained")
    run_row = _watch_training(console, rig, task_id)
    with db.read() as session:
        summary["pairs_train"] = session.exec(ready.where(Pair.split == Split.TRAIN)).one()
        summary["pairs_holdout"] = session.exec(ready.where(Pair.split == Split.HOLDOUT)).one()
    summary["train_seconds"] = round(run_row.train_seconds or 0, 1)
    summary["train_rows_per_second"] = round(run_row.rows_per_second or 0, 2)
    summary["train_loss"] = run_row.loss

    console.rule("3. It is examined through vLLM, and judged")
    verdict = _watch_evaluation(console, rig, task_id)
    numbers = verdict.numbers
    passed = verdict.outcome == Outcome.PASSED
    summary["gate"] = {
        **{key: numbers[key] for key in ("n", "agreement", "self_agreement", "floor", "z", "hard_errors", "hard_error_upper")},
        "passed": passed,
    }
    console.print(f"[bold]{verdict.outcome}[/]: {verdict.reason}")
    if not passed:
        raise NotSeen("a student that passes the gate; the teacher keeps answering")

    console.rule("4. It is promoted, and answers")
    route = rig.until(lambda s: s.exec(select(Route).where(Route.task_id == task_id)).first(), 60, "the route to the student")
    console.print(f"The route of {TASK} now points at [bold]{route.adapter_id}[/].")
    swapped = _send_until_student(rig, model, fresh)
    summary["swap_seconds"] = round(swapped - verdict.created_at.timestamp(), 2)
    live = _send(console, rig, model, plan.live_concurrency, fresh, "fresh requests")
    failures += live.failures
    summary["student_answered"], summary["teacher_answered"] = live.count(Server.STUDENT), live.count(Server.TEACHER)
    student_right = [ok for ok, by in zip(live.right, live.by, strict=True) if by == Server.STUDENT.value]
    summary["agreement_live"] = round(sum(student_right) / max(1, len(student_right)), 4)
    summary["p50_ms"] = {"teacher": captured.p50(Server.TEACHER), "student": live.p50(Server.STUDENT)}
    summary["cost_per_1000_requests_usd"] = {"teacher": round(_cost(captured) * 1000, 3), "student": 0.0}
    if not summary["student_answered"]:
        raise NotSeen("an answer of the student to a fresh request")

    console.rule("5. vLLM is killed: the teacher takes over")
    with db.read() as session:
        engine = session.exec(select(Engine).where(Engine.status == EngineStatus.READY)).one()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    without_student = _send(console, rig, model, plan.live_concurrency, outage, "requests with vLLM dead")
    failures += without_student.failures
    summary["without_student"] = {"answered": len(without_student.by), "by_teacher": without_student.count(Server.TEACHER)}
    if without_student.count(Server.TEACHER) < len(outage):
        raise NotSeen("the teacher taking over every request while vLLM is dead")
    console.print("Waiting for vLLM to be restarted, and the adapter loaded again.")
    rig.until(lambda s: _is_back(s, engine, str(route.adapter_id)), 240, "vLLM back, with the adapter")
    time.sleep(11)  # the proxy's breaker tries the student again after ten seconds

    console.rule("6. The teacher is killed: the student still answers")
    if rig.teacher is not None:
        children.stop(rig.teacher, grace=0)
        without_teacher = _send(console, rig, model, plan.live_concurrency, alone, "requests with the teacher dead")
        failures += without_teacher.failures
        summary["without_teacher"] = {"answered": len(without_teacher.by), "by_student": without_teacher.count(Server.STUDENT)}
        if without_teacher.count(Server.STUDENT) < len(alone):
            raise NotSeen("the student answering every request while the teacher is dead")
    else:
        console.print("Skipped: OpenAI's API is not ours to kill.")
        summary["without_teacher"] = None
    summary["failed_requests"] = len(failures)
    summary["failures"] = failures[:10]


def _watch_training(console: Console, rig: Rig, task_id: str) -> Run:
    def latest(session: Session) -> Run | None:
        return session.exec(select(Run).where(Run.task_id == task_id).order_by(col(Run.created_at).desc())).first()

    rig.until(latest, 240, "a training run (the base model is prepared first)")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("training", total=None, note="")
        while True:
            row = rig.until(latest, 30, "the run's row")
            note = (
                f"loss {row.loss:.4f}, {row.rows_per_second:.1f} rows/s"
                if row.loss is not None and row.rows_per_second
                else "starting"
            )
            bar.update(line, total=row.total_steps or None, completed=row.step, note=note)
            if row.status == RunStatus.FAILED:
                raise NotSeen(f"a trained student: {row.error}")
            if row.status == RunStatus.SUCCEEDED:
                return row
            rig.check_alive()
            time.sleep(0.5)


def _watch_evaluation(console: Console, rig: Rig, task_id: str) -> Verdict:
    def latest(session: Session) -> Evaluation | None:
        return session.exec(select(Evaluation).where(Evaluation.task_id == task_id)).first()

    rig.until(latest, 240, "an evaluation (vLLM must be ready and have the adapter)")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("held-out prompts answered", total=None)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            row = rig.until(latest, 30, "the evaluation's row")
            bar.update(line, total=row.total, completed=row.answered)
            if row.status == EvaluationStatus.DONE:
                break
            rig.check_alive()
            time.sleep(0.5)
    return rig.until(lambda s: s.exec(select(Verdict).where(Verdict.task_id == task_id)).first(), 30, "the verdict")


def _send(console: Console, rig: Rig, model: str, at_once: int, some: list[tickets.Ticket], what: str) -> Sent:
    """Send tickets with the OpenAI SDK, `at_once` at a time, every third streamed."""
    sent = Sent()
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        line = bar.add_task(what, total=len(some))

        async def everything() -> None:
            room = asyncio.Semaphore(at_once)

            async def one(index: int, ticket: tickets.Ticket) -> None:
                async with room:
                    await _ask(client, model, ticket, stream=index % 3 == 0, sent=sent)
                    bar.advance(line)

            async with _client(rig) as client:
                await asyncio.gather(*(one(i, t) for i, t in enumerate(some)))

        asyncio.run(everything())
    served = f"{sent.count(Server.STUDENT)} answered by the student, {sent.count(Server.TEACHER)} by the teacher"
    console.print(f"{served}, {len(sent.failures)} failed.")
    return sent


async def _ask(client: AsyncOpenAI, model: str, ticket: tickets.Ticket, *, stream: bool, sent: Sent) -> None:
    body = tickets.request(ticket, model=model, stream=stream)
    begun = time.monotonic()
    try:
        raw = await client.chat.completions.with_raw_response.create(**body, extra_headers={"x-stillroom-task": TASK})
        if stream:
            pieces = [chunk.choices[0].delta.content or "" async for chunk in raw.parse() if chunk.choices]
            text, usage = "".join(pieces), None
        else:
            completion = raw.parse()
            text, usage = completion.choices[0].message.content or "", completion.usage
    except (OpenAIError, httpx.HTTPError) as error:
        sent.failures.append(f"{type(error).__name__}: {error}")
        return
    sent.milliseconds.append((time.monotonic() - begun) * 1000)
    sent.by.append(raw.headers.get("x-stillroom-served-by", "unknown"))
    sent.right.append(_parsed(text) == ticket.answer)
    if usage is not None:
        sent.tokens.append((usage.prompt_tokens, usage.completion_tokens))


def _client(rig: Rig) -> AsyncOpenAI:
    """No retries: a failure must be seen."""
    return AsyncOpenAI(base_url=rig.base_url, api_key=KEY, max_retries=0, timeout=120)


def _send_until_student(rig: Rig, model: str, some: list[tickets.Ticket]) -> float:
    """Ask until the student answers; returns when it began to (seconds since 1970)."""
    sent = Sent()

    async def ask() -> float:
        async with _client(rig) as client:
            for ticket in some[:40]:
                asked = time.time()
                await _ask(client, model, ticket, stream=False, sent=sent)
                if sent.by and sent.by[-1] == Server.STUDENT.value:
                    return asked
                await asyncio.sleep(0.25)
        raise NotSeen(f"an answer of the student (40 asked: {sent.by}, {sent.failures[:3]})")

    return asyncio.run(ask())


def _is_back(session: Session, before: Engine, adapter_id: str) -> bool | None:
    engine = session.get_one(Engine, before.id)
    return (engine.status == EngineStatus.READY and engine.pid != before.pid and adapter_id in engine.loaded) or None


def _cost(sent: Sent) -> float:
    """Dollars a request at the teacher's list price."""
    return statistics.mean(prompt * PRICE_IN + completion * PRICE_OUT for prompt, completion in sent.tokens) / 1e6


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _print_summary(console: Console, summary: dict[str, Any]) -> None:
    table = Table(title="What was seen" if summary["passed"] else "What was seen before it stopped")
    table.add_column("")
    table.add_column("", justify="right")
    for key, value in summary.items():
        table.add_row(key.replace("_", " "), json.dumps(value) if isinstance(value, dict | list) else str(value))
    console.print(table)
