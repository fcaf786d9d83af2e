"""`stillroom demo`: the whole wheel in front of your eyes, with real parts and a simulated (or your own) teacher.

Everything lives in a temporary folder. Each stage counts as seen only when its rows, headers or processes show it; the exit
code is 0 only if every stage was seen and no request failed. With a real teacher the last stage, in which the teacher is
killed, is skipped: the summary's `skipped` says so.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlmodel import Session, col, func, select

from admin import traffic, up
from admin.problems import Unavailable
from admin.rig import KEY, NotSeen, Rig, peak_memory, start
from admin.summary import print_summary, side_by_side
from admin.teachers import tickets
from admin.traffic import TASK, Sent
from store import children, policy
from store.states import CaptureStatus, EngineStatus, EvaluationStatus, Outcome, PairStatus, RunStatus, Server, Split
from store.tables import Adapter, Capture, Engine, Evaluation, Pair, Route, Run, Task, Verdict

OPENAI = "https://api.openai.com/v1"
# Many distinct tickets, each seen once, teach more in the same minutes than half as many seen twice.
RECIPE = "epochs = 1\nbatch_rows = 12\nlearning_rate = 2e-3\n"
TRAINING_SECONDS, EVALUATION_SECONDS = 1800, 1200  # of a machine that has other things to do


@dataclass(frozen=True)
class Plan:
    """How much of everything: enough for the gate to tell, little enough for ten minutes on two cores."""

    requests: int = 1500
    holdout: float = 0.35  # about 520 of them: from 500 on the gate can tell whatever the teacher's noise
    fresh: int = 60
    polls: int = 40  # at most so many requests until the student is seen to answer
    outage: int = 24
    concurrency: int = 32  # of the traffic to learn from
    live_concurrency: int = 4  # of what a student answers: on two cores it is quick only while few ask at once
    teacher_latency_ms: float = 400
    seed: int = 7


def run(plan: Plan, summary_path: Path, models: Path, *, real_teacher: str | None = None, home: Path | None = None) -> int:
    """Run the demo; returns the exit code.

    `models` keeps the prepared base model for the next time; `real_teacher` is a model of OpenAI's, asked with OPENAI_API_KEY;
    `home` is kept, the temporary folder used without it is removed after a success.
    """
    if why := up.not_runnable("distill") or up.vllm_missing():
        raise Unavailable(f"The demo cannot run here. {why}", "not_installed")
    console = Console()
    temporary = home is None
    home = home or Path(tempfile.mkdtemp(prefix="stillroom-demo-"))
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    summary: dict[str, Any] = {"passed": False, "skipped": []}
    failures: list[str] = []
    begun = time.monotonic()
    (home / "recipe.toml").write_text(RECIPE)
    settings = {"TICK_SECONDS": "2", "MODELS_DIR": str(models), "RECIPE": str(home / "recipe.toml"), "ESTIMATE": "false"}
    if real_teacher is None:
        teacher: list[str] | None = ["simulate", "--latency-ms", str(plan.teacher_latency_ms), "--key", KEY]
        key = KEY
    else:
        teacher, key = None, os.environ["OPENAI_API_KEY"]
        settings["TEACHER_URL"] = OPENAI
    try:
        with peak_memory() as peak, start(home, teacher, settings, key=key) as rig:
            try:
                _wheel(console, rig, plan, real_teacher or "gpt-sim", summary, failures)
            finally:
                summary["peak_memory_gib"] = peak()
        summary["passed"] = not failures
    except NotSeen as missing:
        summary["error"] = str(missing)
        console.print(f"[bold red]Not seen:[/] {missing}\nLogs: {home / 'logs'}")
    except BaseException as error:
        summary["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        summary |= {"failed_requests": len(failures), "failures": failures[:10], "seconds": round(time.monotonic() - begun, 1)}
        print_summary(console, summary)
        summary_path.write_text(json.dumps(summary, indent=2) + "\n")
        console.print(f"Written to {summary_path}.")
    if temporary and summary["passed"]:
        shutil.rmtree(home)
    return 0 if summary["passed"] else 1


def _wheel(console: Console, rig: Rig, plan: Plan, model: str, summary: dict[str, Any], failures: list[str]) -> None:
    """Every stage in its order; numbers and failed requests are noted as they are known."""
    db = rig.db
    drawn = iter(tickets.draw(plan.seed, plan.requests + plan.fresh + plan.polls + 2 * plan.outage))
    first, fresh, polls, outage, alone = (
        list(islice(drawn, n)) for n in (plan.requests, plan.fresh, plan.polls, plan.outage, plan.outage)
    )

    def send(at_once: int, some: list[tickets.Ticket], what: str, route: str = "auto") -> Sent:
        sent = traffic.send(console, rig, model, at_once, some, what, route)
        failures.extend(sent.failures)
        return sent

    console.rule("1. The teacher answers, stillroom captures")
    send(plan.concurrency, first[:1], "first request")
    task_id = rig.until(lambda s: s.exec(select(Task.id).where(Task.name == TASK)).first(), 30, "the task's row")
    with db.begin() as session:  # what `stillroom task set` does
        rule = policy.Policy(holdout=plan.holdout, validation=0, first_pairs=plan.requests - 5)
        session.get_one(Task, task_id).policy = rule.model_dump(exclude_defaults=True)
    send(plan.concurrency, first[1:], "requests, every third streamed")
    if failures:
        raise NotSeen(f"every request answered; {len(failures)} failed, such as: {failures[0]}")
    complete = select(func.count(col(Capture.id))).where(Capture.task_id == task_id, Capture.status == CaptureStatus.COMPLETE)
    summary["captured"] = rig.until(lambda s: _at_least(plan.requests, s.exec(complete).one()), 60, "all captures in the database")
    console.print(f"{summary['captured']} complete captures are in the database.")

    console.rule("2. A student is trained")
    run_row = _watch_training(console, rig, task_id)
    with db.read() as session:
        for split in Split:
            pairs = select(func.count()).where(Pair.status == PairStatus.READY, Pair.split == split)
            summary[f"pairs_{split}"] = session.exec(pairs).one()
    summary["train_seconds"] = round(run_row.train_seconds or 0, 1)
    summary["train_rows_per_second"] = round(run_row.rows_per_second or 0, 2)
    summary["train_loss"] = run_row.loss

    console.rule("3. It is loaded into vLLM, evaluated, and judged")
    adapter_id = rig.until(
        lambda s: s.exec(select(Adapter.id).where(Adapter.run_id == run_row.id)).first(), 60, "the adapter's row"
    )
    rig.until(lambda s: _loaded(s, adapter_id), 300, "the adapter loaded (vLLM must be ready)")
    summary["loaded"] = adapter_id
    console.print(f"vLLM has loaded [bold]{adapter_id}[/].")
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
    polled, swapped = traffic.send_until_student(rig, model, polls)
    failures += polled.failures
    summary["polls"] = len(polled.answers)
    if swapped is None:
        raise NotSeen(f"an answer of the student to one of {len(polls)} requests")
    summary["swap_seconds"] = round(swapped - verdict.created_at.timestamp(), 2)
    live = send(plan.live_concurrency, fresh, "fresh tickets, as a client sends them")
    asked_of_teacher = send(plan.live_concurrency, fresh, "the same tickets, asked of the teacher", "teacher")
    summary |= side_by_side(live, asked_of_teacher, model)
    if not summary["student_answered"]:
        raise NotSeen("an answer of the student to a fresh ticket")

    console.rule("5. vLLM is killed: the teacher takes over")
    engine = rig.until(lambda s: s.exec(select(Engine).where(Engine.status == EngineStatus.READY)).first(), 30, "vLLM ready")
    if engine.pid is None:
        raise NotSeen("the process of vLLM")
    os.kill(engine.pid, signal.SIGKILL)
    without_student = send(plan.live_concurrency, outage, "requests with vLLM dead")
    by_teacher = len(without_student.of(Server.TEACHER))
    summary["without_student"] = {"answered": len(without_student.answers), "by_teacher": by_teacher}
    if by_teacher < len(outage):
        raise NotSeen("the teacher taking over every request while vLLM is dead")
    console.print("Waiting for vLLM to be restarted, and the adapter loaded again.")
    rig.until(lambda s: _is_back(s, engine, adapter_id), 240, "vLLM back, with the adapter")
    time.sleep(11)  # the proxy's breaker tries the student again after ten seconds

    stage = "6. The teacher is killed: the student still answers"
    console.rule(stage)
    if rig.teacher is None:
        console.print("Skipped: OpenAI's API is not ours to kill.")
        summary["skipped"].append(stage)
        return
    children.stop(rig.teacher, grace=0)
    without_teacher = send(plan.live_concurrency, alone, "requests with the teacher dead")
    by_student = len(without_teacher.of(Server.STUDENT))
    summary["without_teacher"] = {"answered": len(without_teacher.answers), "by_student": by_student}
    if by_student < len(alone):
        raise NotSeen("the student answering every request while the teacher is dead")


def _watch_training(console: Console, rig: Rig, task_id: str) -> Run:
    def latest(session: Session) -> Run | None:
        return session.exec(select(Run).where(Run.task_id == task_id).order_by(col(Run.created_at).desc())).first()

    rig.until(latest, 240, "a training run (the base model is prepared first)")
    deadline = time.monotonic() + TRAINING_SECONDS
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("training", total=None, note="")
        told = 0
        while time.monotonic() < deadline:
            row = rig.until(latest, 30, "the run's row")
            note = (
                f"loss {row.loss:.4f}, {row.rows_per_second:.1f} rows/s"
                if row.loss is not None and row.rows_per_second
                else "starting"
            )
            bar.update(line, total=row.total_steps or None, completed=row.step, note=note)
            if not console.is_terminal and row.total_steps and row.step * 10 // row.total_steps > told:  # a log shows no bar
                told = row.step * 10 // row.total_steps
                console.print(f"step {row.step} of {row.total_steps}, {note}")
            if row.status == RunStatus.FAILED:
                raise NotSeen(f"a trained student: {row.error}")
            if row.status == RunStatus.SUCCEEDED:
                return row
            rig.check_alive()
            time.sleep(0.5)
    raise NotSeen(f"a trained student, within {TRAINING_SECONDS} s")


def _watch_evaluation(console: Console, rig: Rig, task_id: str) -> Verdict:
    def latest(session: Session) -> Evaluation | None:
        return session.exec(select(Evaluation).where(Evaluation.task_id == task_id)).first()

    rig.until(latest, 60, "an evaluation")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("held-out prompts answered", total=None)
        deadline = time.monotonic() + EVALUATION_SECONDS
        while time.monotonic() < deadline:
            row = rig.until(latest, 30, "the evaluation's row")
            bar.update(line, total=row.total, completed=row.answered)
            if row.status == EvaluationStatus.FAILED:
                raise NotSeen(f"an evaluation: {row.error}")
            if row.status == EvaluationStatus.DONE:
                break
            rig.check_alive()
            time.sleep(0.5)
        else:
            raise NotSeen(f"an evaluation, within {EVALUATION_SECONDS} s")
    return rig.until(lambda s: s.exec(select(Verdict).where(Verdict.task_id == task_id)).first(), 30, "the verdict")


def _at_least(enough: int, found: int) -> int | None:
    return found if found >= enough else None


def _loaded(session: Session, adapter_id: str) -> bool | None:
    engines = session.exec(select(Engine).where(Engine.status == EngineStatus.READY))
    return any(adapter_id in engine.loaded for engine in engines) or None


def _is_back(session: Session, before: Engine, adapter_id: str) -> bool | None:
    engine = session.get_one(Engine, before.id)
    return (engine.status == EngineStatus.READY and engine.pid != before.pid and adapter_id in engine.loaded) or None
