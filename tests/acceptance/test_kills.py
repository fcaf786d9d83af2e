"""kill -9 of the trainer, of the proxy, of vLLM and of everything at once, with the real vLLM: nothing is lost, the wheel goes on.

The student is a tiny random model, so that training takes seconds; what it says does not matter here.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil
import pytest
from openai import OpenAI, OpenAIError
from openai.types.chat import ChatCompletionChunk
from sqlmodel import Session, col, func, select

from admin import rig
from admin.teachers import tickets
from store import children, policy
from store.states import CaptureStatus, EngineStatus, RunStatus, Split
from store.tables import Adapter, Capture, Engine, Pair, Run, RunStep, Task, Verdict
from tests import models

TASK = "triage"
RECIPE = """
epochs = 24
checkpoint_seconds = 1
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.Rig]:
    """A stillroom whose student is a tiny random model, and whose simulated teacher is so slow that its answers can be cut."""
    folder = tmp_path_factory.mktemp("kills")
    base = models.tiny_llama(folder / "base", hidden=256, positions=4096)
    (folder / "recipe.toml").write_text(RECIPE)
    settings = {"BASE_MODEL": str(base), "RECIPE": str(folder / "recipe.toml"), "TICK_SECONDS": "1", "LEASE_SECONDS": "4"}
    with rig.start(folder / "home", ["simulate", "--latency-ms", "1000"], settings) as started:
        yield started


def restart(running: rig.Rig) -> None:
    """`stillroom up` once more, as a person would type it."""
    running.up = rig.spawn(["up"], running.home / "logs" / "up.log", running.environment)
    rig.wait_for(running.base_url.removesuffix("v1") + "readyz", running.up)


def ask(running: rig.Rig, ticket: tickets.Ticket) -> str:
    with OpenAI(base_url=running.base_url, api_key="any", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(**tickets.request(ticket), extra_headers={"x-stillroom-task": TASK})
    return str(raw.headers["x-stillroom-id"])


def read_killing(stream: Iterable[ChatCompletionChunk], pid: int | None) -> None:
    """Read the stream; kill the process at its first chunk."""
    for _ in stream:
        assert pid is not None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(running: rig.Rig, word: str) -> list[psutil.Process]:
    """Processes below `up` whose command line has the word."""
    return [p for p in psutil.Process(running.up.pid).children(recursive=True) if word in " ".join(p.cmdline())]


def left_of(pids: list[int]) -> list[int]:
    """Those that still run, once they have had 15 seconds to die; what nobody has waited for yet is dead."""
    deadline = time.monotonic() + 15
    while True:
        alive = [p.pid for p in psutil.process_iter() if p.pid in pids and p.status() != psutil.STATUS_ZOMBIE]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.1)


def task_id(running: rig.Rig) -> str:
    return running.until(lambda s: s.exec(select(Task.id).where(Task.name == TASK)).first(), 30, "the task")


def a_run(session: Session) -> Run | None:
    return session.exec(select(Run)).first()


def steps(running: rig.Rig, more_than: int) -> int:
    """Wait until the run has made more steps than that."""

    def look(session: Session) -> int | None:
        run = a_run(session)
        return run.step if run is not None and run.step > more_than else None

    return running.until(look, 300, f"more than {more_than} steps")


@pytest.mark.timeout(2400)
def test_a_killed_trainer_and_then_everything_killed_resume_the_run_at_its_checkpoint(running: rig.Rig) -> None:
    with ThreadPoolExecutor(10) as pool:
        acknowledged = list(pool.map(lambda ticket: ask(running, ticket), tickets.draw(1, 80)))
    with running.db.begin() as session:
        task = session.get_one(Task, task_id(running))
        task.policy = policy.Policy(first_pairs=60).model_dump(exclude_defaults=True)

    reached = steps(running, 5)
    (trainer,) = processes(running, "distill.train")
    trainer.kill()
    steps(running, reached + 5)

    everything = [running.up.pid, *(p.pid for p in psutil.Process(running.up.pid).children(recursive=True))]
    os.kill(running.up.pid, signal.SIGKILL)
    running.up.wait()
    assert not left_of(everything)  # no orphan keeps running

    restart(running)
    done = running.until(lambda s: (r := a_run(s)) and (r if r.status == RunStatus.SUCCEEDED else None), 600, "the run's end")
    assert done.step == done.total_steps
    with running.db.read() as session:
        curve = session.exec(select(RunStep.step).where(RunStep.run_id == done.id).order_by(col(RunStep.step))).all()
        assert len(session.exec(select(Run)).all()) == len(session.exec(select(Adapter)).all()) == 1
        stored = session.exec(select(Capture.id)).all()
        splits = dict(session.exec(select(Pair.split, func.count()).group_by(col(Pair.split))).all())
    assert curve[-1] == done.total_steps
    assert sorted(stored) == sorted(set(acknowledged))
    assert splits[Split.TRAIN] + splits[Split.HOLDOUT] == len(acknowledged)
    summary = next((running.home / "artifacts").rglob("training.json")).read_text()
    assert 0 < json.loads(summary)["result"]["resumed_from"] < done.total_steps


@pytest.mark.timeout(2400)
def test_the_wheel_came_to_a_verdict_and_the_teacher_keeps_answering(running: rig.Rig) -> None:
    verdict = running.until(lambda s: s.exec(select(Verdict)).first(), 400, "a verdict on the random student")
    assert verdict.outcome != "passed"
    assert ask(running, tickets.draw(2, 1)[0])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("module", ["proxy.worker", "proxy"])
def test_a_proxy_killed_in_mid_stream_leaves_an_incomplete_capture_and_is_restarted(running: rig.Rig, module: str) -> None:
    body = tickets.request(tickets.draw(3, 1)[0], stream=True)
    (proxy,) = (process for process in processes(running, f"-m {module}") if module in process.cmdline())
    with OpenAI(base_url=running.base_url, api_key="any", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(**body, extra_headers={"x-stillroom-task": TASK})
        with pytest.raises((OpenAIError, httpx.HTTPError)):
            read_killing(raw.parse(), proxy.pid)
    capture_id = raw.headers["x-stillroom-id"]
    capture = running.until(lambda s: s.get(Capture, capture_id), 60, "the capture of the broken stream")
    assert capture.status == CaptureStatus.INCOMPLETE
    assert ask(running, tickets.draw(4, 1)[0])


@pytest.mark.timeout(800)
def test_vllm_killed_in_mid_answer_is_restarted_with_the_adapter_and_nobody_gets_a_spliced_answer(running: rig.Rig) -> None:
    with running.db.read() as session:
        adapter = session.exec(select(Adapter.id)).one()
    promote = [*rig.STILLROOM, "promote", adapter, "--json"]
    environment = {**os.environ, **running.environment}
    done = subprocess.run(promote, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = running.until(
        lambda s: s.exec(select(Engine).where(Engine.status == EngineStatus.READY)).first(), 200, "a ready engine"
    )
    running.until(lambda s: adapter in s.get_one(Engine, loaded.id).loaded or None, 60, "the adapter loaded")
    time.sleep(2)  # the proxy reads routes each second

    request = {**tickets.request(tickets.draw(5, 1)[0], stream=True), "max_tokens": 2000}
    del request["response_format"]
    with OpenAI(base_url=running.base_url, api_key="any", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            **request, extra_headers={"x-stillroom-task": TASK, "x-stillroom-route": "student"}
        )
        assert raw.headers["x-stillroom-served-by"] == "student"
        with pytest.raises((OpenAIError, httpx.HTTPError)):
            read_killing(raw.parse(), loaded.pid)
    capture = running.until(lambda s: s.get(Capture, raw.headers["x-stillroom-id"]), 60, "the capture of the broken answer")
    assert capture.status == CaptureStatus.INCOMPLETE
    assert ask(running, tickets.draw(6, 1)[0])  # the teacher has taken over

    def back(session: Session) -> bool | None:
        engine = session.get_one(Engine, loaded.id)
        return (engine.status == EngineStatus.READY and engine.pid != loaded.pid and adapter in engine.loaded) or None

    assert running.until(back, 240, "vLLM back with the adapter")


@pytest.mark.timeout(300)
def test_up_stops_cleanly_and_leaves_no_process(running: rig.Rig) -> None:
    below = [p.pid for p in psutil.Process(running.up.pid).children(recursive=True)]
    assert children.stop(running.up, grace=60) == 0
    assert not left_of(below)
