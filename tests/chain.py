"""A whole turn of the wheel without a model: captures, pairs, a frozen dataset, a run, a registered adapter, an evaluation."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from safetensors.numpy import save_file
from sqlmodel import select

from distill import datasets, pairs, runs
from distill.settings import DistillSettings
from store import captures, ids, policy, prompts, tasks
from store.columns import now
from store.packing import Packer
from store.prompts import Transform
from store.session import Database
from store.states import CaptureStatus, EvaluationStatus, RunStatus, Server
from store.tables import Adapter, Capture, Dataset, Evaluation, EvaluationItem, Pair, Run, Task

WORDS = ["alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ivy", "juniper", "larch", "maple", "nutmeg", "oak"]


def said(number: int) -> str:
    """A question like no other."""
    rng = random.Random(number)
    return " ".join(f"{rng.choice(WORDS)}{rng.randrange(100)}" for _ in range(11))


def exchange(number: int, system: str, user: str | None = None, **changes: Any) -> Capture:
    """A capture of a question."""
    question = changes.pop("question", said(number))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    request = {"model": "big", "messages": messages, **({"user": user} if user else {}), **changes.pop("request", {})}
    answer = changes.pop("answer", f"answer {number % 5}")
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]}
    columns = {
        "id": ids.new("cap"), "task_id": tasks.identify(request).id, "endpoint": "/v1/chat/completions", "model": "big",
        "status": CaptureStatus.COMPLETE, "served_by": Server.TEACHER, "http_status": 200, "finish_reason": "stop",
        "request": orjson.dumps(request), "response": orjson.dumps(body), "prompt_text": question, "answer_text": answer,
        "meta": {"user": user} if user else {},
    }  # fmt: skip
    return Capture(**{**columns, **changes})


def write(db: Database, rows: Sequence[Capture], packer: Packer | None = None) -> str:
    """Store captures as the proxy does, twenty a transaction; the task of the first."""
    packer = packer or Packer()
    for start in range(0, len(rows), 20):
        some = rows[start : start + 20]
        with db.begin() as session:
            for row in some:
                tasks.ensure(session, tasks.identify(orjson.loads(row.request)))
            session.flush()
            captures.write(session, some, packer)
    return rows[0].task_id


def pair(db: Database, task_id: str) -> None:
    """Make the task's pairs."""
    while True:
        with db.begin() as session:
            if not pairs.extract(session, task_id, policy.of(session.get_one(Task, task_id))):
                return


def freeze(db: Database, task_id: str, settings: DistillSettings) -> Dataset:
    """The task's dataset as it is now."""
    with db.read() as session:
        rule = policy.of(session.get_one(Task, task_id))
    return datasets.freeze(db, task_id, rule, settings)


def train(db: Database, dataset: Dataset, settings: DistillSettings, transform: Transform | None = None) -> Adapter:
    """A run of the dataset that has ended, and its adapter, whose two matrices fit no model."""
    recipe = {"rank": 2, "learning_rate": 1e-4}
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()
    with db.begin() as session:
        run = Run(
            task_id=dataset.task_id, dataset_id=dataset.id, base_model="smollm2", recipe=recipe, status=RunStatus.SUCCEEDED,
            recipe_hash=hashlib.sha256(canonical).hexdigest(), loss=0.5, train_seconds=9.0, started_at=now(),
        )  # fmt: skip
        session.add(run)
        session.flush()
        folder = settings.run_folder(run.id) / "adapter"
        folder.mkdir(parents=True)
        matrices = {f"base_model.model.x.lora_{side}.weight": np.ones((2, 2), np.float32) for side in "AB"}
        save_file(matrices, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "nowhere"}))
        if transform is not None:
            (folder / prompts.TRANSFORM).write_text(json.dumps(transform.dump()))
        return runs.register(session, run, settings)


def evaluate(db: Database, adapter: Adapter, dataset: Dataset, settings: DistillSettings) -> Evaluation:
    """An evaluation in which the student says what the teacher said."""
    with db.begin() as session:
        found = Evaluation(task_id=adapter.task_id, adapter_id=adapter.id, dataset_id=dataset.id, kind="label")
        found.status = EvaluationStatus.DONE
        session.add(found)
        session.flush()
        rows = list(datasets.read(settings.home_path / dataset.path, "holdout"))
        for row in rows:
            same = {"t0": row.completion, "s": row.completion, "agrees": True, "hard_error": False}
            session.add(EvaluationItem(evaluation_id=found.id, pair_id=row.pair_id, **same))
        found.answered = found.total = len(rows)
    return found


def files(folder: Path) -> Iterable[Path]:
    """All files below a folder."""
    return (file for file in folder.rglob("*") if file.is_file())


def ready(db: Database, task_id: str) -> list[Pair]:
    """The task's pairs."""
    with db.read() as session:
        return list(session.exec(select(Pair).where(Pair.task_id == task_id)))
