"""Rows as the rooms write them, for the tests of admin."""

import hashlib
from datetime import timedelta
from typing import Any

import orjson
from sqlmodel import Session

from store import answers, ids, routes, tasks
from store.columns import now
from store.policy import Policy
from store.states import (
    AdapterStatus,
    CaptureStatus,
    EngineStatus,
    EvaluationStatus,
    Outcome,
    PairStatus,
    RolloutStage,
    RunStatus,
    Server,
    Split,
)
from store.tables import (
    Adapter,
    Capture,
    Dataset,
    DatasetPair,
    Engine,
    Evaluation,
    EvaluationItem,
    Pair,
    Rollout,
    Run,
    RunStep,
    Task,
    Verdict,
)

SYSTEM = "Say whether the number is odd or even."


def asked(prompt: str, **changes: Any) -> dict[str, Any]:
    """A chat completion request."""
    return {"model": "big", "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}], **changes}


def said(answer: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": answer, **message}, "finish_reason": finish}]}


def streamed(answer: str) -> bytes:
    """The same as a stream."""
    chunks = [{"delta": {"role": "assistant", "content": answer}}, {"delta": {}, "finish_reason": "stop"}]
    events = [b"data: " + orjson.dumps({"choices": [{"index": 0, **chunk}]}) for chunk in chunks]
    return b"\n\n".join([*events, b"data: [DONE]", b""])


def capture(session: Session, prompt: str, answer: str | None = "even", *, minutes_ago: float = 0, **changes: Any) -> Capture:
    """Store an exchange as the proxy does; `request` and `message` change its bodies, the rest its columns."""
    request = asked(prompt, **changes.pop("request", {}))
    tasks.ensure(session, tasks.identify(request))
    row = exchange(prompt, answer, request, minutes_ago, changes)
    session.add(row)
    session.flush()
    return row


def exchange(prompt: str, answer: str | None, request: dict[str, Any], minutes_ago: float, changes: dict[str, Any]) -> Capture:
    """A capture's row."""
    response = orjson.dumps(said(answer, **changes.pop("message", {})))
    columns: dict[str, Any] = {
        "id": ids.new("cap"),
        "created_at": now() - timedelta(minutes=minutes_ago),
        "task_id": tasks.identify(request).id,
        "endpoint": "/v1/chat/completions",
        "status": CaptureStatus.COMPLETE,
        "served_by": Server.TEACHER,
        "model": "big",
        "http_status": 200,
        "request": orjson.dumps(request),
        "response": response,
        "prompt_text": prompt,
        "answer_text": answer or "",
        "finish_reason": "stop",
        "duration_ms": 400.0,
    }
    return Capture(**{**columns, **changes})


def pair(session: Session, of: Capture, split: Split | None = Split.TRAIN, **changes: Any) -> Pair:
    """The pair that distill makes of a capture."""
    row = paired(of, split, **changes)
    session.add(row)
    session.flush()
    return row


def paired(of: Capture, split: Split | None, **changes: Any) -> Pair:
    """A pair's row."""
    request = orjson.loads(of.request)
    columns: dict[str, Any] = {
        "task_id": of.task_id,
        "capture_id": of.id,
        "status": PairStatus.READY if split else PairStatus.EXCLUDED,
        "split": split,
        "content_hash": hashlib.sha256(of.request + of.response).hexdigest(),
        "messages": request["messages"],
        "tools": request.get("tools"),
        "completion": answers.read(of.response, stream=of.stream).message,
    }
    return Pair(**{**columns, **changes})


def numbers(session: Session, first: int, last: int) -> Task:
    """Captures and pairs about these numbers; every fourth is held out. Returns their task."""
    task = tasks.ensure(session, tasks.identify(asked("")))
    captures = [exchange(f"{n}?", "odd" if n % 2 else "even", asked(f"{n}?"), 0, {}) for n in range(first, last)]
    session.add_all(captures)
    session.flush()
    session.add_all(paired(each, Split.HOLDOUT if n % 4 == 0 else Split.TRAIN) for n, each in enumerate(captures, first))
    session.flush()
    return task


def trained(session: Session, task: Task, *, version: int = 1, outcome: Outcome | None = Outcome.PASSED) -> Adapter:
    """A whole turn of the wheel: dataset, run with its curve, adapter, evaluation of the held-out pairs, verdict."""
    from sqlmodel import select

    held_out = session.exec(select(Pair).where(Pair.task_id == task.id, Pair.split == Split.HOLDOUT).order_by("created_at")).all()
    dataset = Dataset(
        task_id=task.id, content_hash=f"hash {version}", path="artifacts/x", train_rows=30, holdout_rows=len(held_out)
    )
    session.add(dataset)
    session.flush()
    session.add_all(DatasetPair(dataset_id=dataset.id, pair_id=each.id) for each in held_out)
    run = Run(
        task_id=task.id,
        dataset_id=dataset.id,
        base_model="smollm2",
        recipe={"rank": 16},
        recipe_hash="r",
        status=RunStatus.SUCCEEDED,
        step=3,
        total_steps=3,
        loss=0.5,
        started_at=now(),
    )
    session.add(run)
    session.flush()
    session.add_all(RunStep(run_id=run.id, step=n, loss=2.0 / n, learning_rate=1e-4, rows_per_second=8.0) for n in (1, 2, 3))
    status = AdapterStatus.CANDIDATE if outcome is None else AdapterStatus.REFUSED
    adapter = Adapter(
        id=f"{task.id}@v{version}",
        task_id=task.id,
        version=version,
        run_id=run.id,
        base_model="smollm2",
        path="artifacts/x",
        sha256="0" * 64,
        status=AdapterStatus.ACCEPTED if outcome == Outcome.PASSED else status,
    )
    session.add(adapter)
    session.flush()
    evaluation = Evaluation(
        task_id=task.id, adapter_id=adapter.id, dataset_id=dataset.id, kind="label", answered=len(held_out), total=len(held_out)
    )
    evaluation.status = EvaluationStatus.DONE
    session.add(evaluation)
    session.flush()
    for index, each in enumerate(held_out):
        wrong = index == len(held_out) - 1
        answer = {"role": "assistant", "content": "odd" if wrong else "even"}
        session.add(
            EvaluationItem(
                evaluation_id=evaluation.id, pair_id=each.id, t0=each.completion, s=answer, agrees=not wrong, hard_error=wrong
            )
        )
    if outcome is not None:
        session.add(
            Verdict(
                task_id=task.id,
                adapter_id=adapter.id,
                evaluation_id=evaluation.id,
                outcome=outcome,
                reason="as counted",
                numbers={},
            )
        )
    session.add(Rollout(task_id=task.id, adapter_id=adapter.id, stage=RolloutStage.STAGED))
    session.flush()
    return adapter


def engine(session: Session, *loaded: str) -> None:
    """A vLLM that is ready and has these adapters."""
    session.add(
        Engine(id="engine-x", url="http://127.0.0.1:1", status=EngineStatus.READY, base_model="smollm2", loaded=list(loaded))
    )
    session.flush()


def live(session: Session, adapter: Adapter) -> None:
    """Route its task to it, as serving does."""
    routes.point(session, adapter.task_id, adapter.id, holdback=Policy().holdback, by="serving", why="it passed")
    session.flush()
