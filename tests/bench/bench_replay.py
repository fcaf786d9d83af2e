"""One turn of the wheel on recorded real traffic: `python -m tests.bench.bench_replay FILE.jsonl.gz`.

A turn of the wheel goes from captures to a verdict. Replays FILE as the teacher, sends requests of its train split, shuffled
(files lie sorted by label), through the proxy with the OpenAI SDK, lets the wheel turn once and records the verdict, whatever it
is, in `tests/bench/results/replay-{name}.json`.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAIError
from sqlmodel import col, select

from admin.rig import Rig, peak_memory, start
from admin.teachers import replay
from store import policy
from store.states import RunStatus, Server
from store.tables import Evaluation, Route, Run, Task, Verdict

TASK = "replayed"
COMMAND = "python -m tests.bench.bench_replay FILE.jsonl.gz"
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--after", type=int, default=100, help="requests sent after the verdict, to see who answers")
    parser.add_argument("--holdout", type=float, default=0.25, help="300 of 1,500 are the fewest that the gate can judge")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle")
    parser.add_argument("--models", type=Path, default=Path(".cache/models"))
    options = parser.parse_args()
    rows = [row["request"] for row in replay.requests(options.file, "train")]
    random.Random(options.seed).shuffle(rows)
    rows = rows[: options.requests + options.after]
    home = Path(tempfile.mkdtemp(prefix="stillroom-replay-"))
    settings = {"TICK_SECONDS": "2", "MODELS_DIR": str(options.models.resolve())}
    begun = time.monotonic()
    with peak_memory() as peak, start(home, ["replay", str(options.file)], settings) as rig:
        result = turn(rig, rows[: options.requests], rows[options.requests :], options.holdout)
        result["peak_memory_gib"] = peak()
    how = {"command": COMMAND, "machine": {"cores": os.cpu_count()}, "date": f"{date.today()}"}
    result = {"data": options.file.name.split(".")[0], **how, **result, "seconds": round(time.monotonic() - begun)}
    (RESULTS / f"replay-{result['data']}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def turn(rig: Rig, rows: list[dict[str, Any]], after: list[dict[str, Any]], holdout: float) -> dict[str, Any]:
    """Capture, train, judge, and ask once more. Returns what is to be recorded."""
    first = asyncio.run(send(rig, rows[:1]))
    task_id = rig.until(lambda s: s.exec(select(Task.id).where(Task.name == TASK)).first(), 60, "the task")
    with rig.db.begin() as session:
        rule = policy.Policy(holdout=holdout, first_pairs=10**6)
        session.get_one(Task, task_id).policy = rule.model_dump(exclude_defaults=True)
    sent = asyncio.run(send(rig, rows[1:]))
    with rig.db.begin() as session:  # all are sent: whatever number of distinct pairs they make is enough
        session.get_one(Task, task_id).policy = {"holdout": holdout, "first_pairs": 20}
    run = rig.until(
        lambda s: s.exec(select(Run).where(col(Run.status).in_([RunStatus.SUCCEEDED, RunStatus.FAILED]))).first(),
        1800,
        "a trained student",
    )
    if run.status == RunStatus.FAILED:
        raise SystemExit(f"the training failed: {run.error}")
    verdict = rig.until(lambda s: s.exec(select(Verdict)).first(), 1200, "a verdict")
    time.sleep(5)  # a promotion, if there is to be one
    answered = asyncio.run(send(rig, after))
    with rig.db.read() as session:
        evaluation = session.exec(select(Evaluation)).one()
        route = session.get(Route, task_id)
    return {
        "requests": len(rows),
        "failed_requests": first["failed"] + sent["failed"] + answered["failed"],
        "train_seconds": run.train_seconds,
        "train_rows_per_second": run.rows_per_second,
        "loss": run.loss,
        "recipe": run.recipe,
        "evaluation_seconds": (evaluation.finished_at - evaluation.created_at).total_seconds() if evaluation.finished_at else None,
        "verdict": verdict.outcome,
        "reason": verdict.reason,
        "numbers": verdict.numbers,
        "route": route.adapter_id if route else None,
        "answered_after_the_verdict": {"teacher": answered["teacher"], "student": answered["student"]},
    }


async def send(rig: Rig, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Send requests, 16 at once; counts by who answered, and failures."""
    counts = {"teacher": 0, "student": 0, "failed": 0}
    room = asyncio.Semaphore(16)
    async with AsyncOpenAI(base_url=rig.base_url, api_key="none", max_retries=0, timeout=120) as client:

        async def one(body: dict[str, Any]) -> None:
            async with room:
                try:
                    raw = await client.chat.completions.with_raw_response.create(**body, extra_headers={"x-stillroom-task": TASK})
                except OpenAIError:
                    counts["failed"] += 1
                    return
                counts[Server(raw.headers["x-stillroom-served-by"]).value] += 1

        await asyncio.gather(*(one(row) for row in rows))
    return counts


if __name__ == "__main__":
    main()
