"""How well tasks are found, and what that costs a request: `STILLROOM_DATA=... python -m tests.bench.bench_tasks [--record]`.

Requests go through the proxy's writer in the order they came, discovery looks every so many of them and once at the end; what is
compared with the truth is the task that each capture then belongs to (adjusted Rand index). With STILLROOM_DATA also on
mixed_openai_evals_gold, shuffled. Then microseconds to name the task of a request, and seconds to merge two tasks.
"""

import argparse
import gzip
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from distill import discovery
from proxy.insert import Writer
from store import migrate, moves, tasks, templates
from store.capture import KINDS, ROWS
from store.session import Database
from store.tables import Task
from store.templates import NOTHING, Directory
from tests import prompts, traffic

RESULTS = Path(__file__).parent / "results" / "tasks.json"
MIXED = "mixed_openai_evals_gold"
Told = Sequence[tuple[str, dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=100, help="generated requests a task")
    parser.add_argument("--every", type=int, default=200, help="requests between two looks of discovery")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--captures", type=int, default=200_000, help="in each of two tasks that are merged")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    shown = Table("requests", "tasks", "found", "ARI as they came", "ARI", "seconds of discovery", title="tasks found")
    figures: dict[str, Any] = {"found": {}}
    for name, told in _sources(options.each, options.seeds):
        found = _found(told, options.every)
        figures["found"][name] = found
        shown.add_row(name, *(str(found[key]) for key in ("tasks", "found", "ari_online", "ari", "seconds")))
    Console(width=120).print(shown)
    figures["microseconds"] = _microseconds()
    costs = Table("a request", "median µs", "p99 µs", title="naming the task of a request")
    for name, (middle, high) in figures["microseconds"].items():
        costs.add_row(name, str(middle), str(high))
    Console(width=120).print(costs)
    figures["merge"] = {"captures": options.captures, "seconds": _merge_seconds(options.captures)}
    if options.record:
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


def _sources(each: int, seeds: int) -> list[tuple[str, Told]]:
    everything = [*prompts.SYSTEMS, *prompts.QUESTIONS]
    sources: list[tuple[str, Told]] = []
    sources += [(f"generated {seed}", list(prompts.requests(everything, each, seed))) for seed in range(seeds)]
    sources += [(f"alike {seed}", list(prompts.requests(prompts.ALIKE, each, seed))) for seed in range(seeds)]
    if folder := os.environ.get("STILLROOM_DATA"):
        sources.append((MIXED, mixed(Path(folder))))
    return sources


def mixed(folder: Path, seed: int = 0) -> Told:
    """(task, request) of the recording of 13 tasks, shuffled."""
    with gzip.open(folder / f"{MIXED}.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    random.Random(seed).shuffle(rows)
    return [(row["meta"]["task"], row["request"]) for row in rows]


def _found(told: Told, every: int) -> dict[str, Any]:
    """Requests in their order, discovery between."""
    truth, seconds = [task for task, _ in told], 0.0
    named: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/stillroom.db")
        migrate.upgrade(db)
        writer, directory = Writer(db), NOTHING
        for start in range(0, len(told), every):
            some = told[start : start + every]
            named += [tasks.identify(request, directory=directory).id for _, request in some]
            traffic.insert(writer, [traffic.logged(start + number, request) for number, (_, request) in enumerate(some)])
            began = time.perf_counter()
            discovery.turn(db)
            seconds += time.perf_counter() - began
            with db.read() as session:
                directory = templates.read(session, directory)
        ids = traffic.task_ids(db)
        db.close()
    return {
        "requests": len(told),
        "tasks": len(set(truth)),
        "found": len(set(ids)),
        "ari_online": round(prompts.adjusted_rand(truth, named), 4),
        "ari": round(prompts.adjusted_rand(truth, ids), 4),
        "seconds": round(seconds, 2),
    }


def _microseconds() -> dict[str, tuple[float, float]]:
    """By kind of request: (median, 99th percentile)."""
    told = list(prompts.requests([*prompts.SYSTEMS, *prompts.QUESTIONS], 60, 0))
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/stillroom.db")
        migrate.upgrade(db)
        traffic.send(db, (request for _, request in told))
        discovery.turn(db)
        with db.read() as session:
            directory = templates.read(session)
        db.close()
    fresh = list(prompts.requests([*prompts.SYSTEMS, *prompts.QUESTIONS], 300, 1))
    functions = [{"name": f"f{number}", "description": "d" * 200, "parameters": _SCHEMA} for number in range(14)]
    tools = [{"type": "function", "function": function} for function in functions]
    fixed = [request for task, request in fresh if task == "fixed"]
    short = [request for task, request in fresh if task in ("support", "triage", "english", "steps", "named_first", "sentiment")]
    long = [request for task, request in fresh if task in ("answer_from", "summarise_from", "with_sources")]
    questions = [request for task, request in fresh if task in prompts.QUESTIONS]
    unknown = [f"{number} {'what nobody knows ' * 100}" for number in range(2000)]
    strange = [{"model": "big", "messages": [{"role": "system", "content": text}]} for text in unknown]
    return {
        "remembered": _timed(fixed, NOTHING),
        "remembered, 14 tools": _timed([{**request, "tools": tools} for request in fixed], NOTHING),
        "new key, 1.8 KB, nothing known": _timed(strange, NOTHING),
        "new key, 1.8 KB, fits no template": _timed(strange, directory),
        "new key, 0.2-1 KB, fits a template": _timed(short, directory),
        "new key, 1-9 KB of passages, fits a template": _timed(long, directory),
        "new key, 0.2 KB, 14 tools of 7 KB, nothing known": _timed([{**request, "tools": tools} for request in short], directory),
        "new key, 14 tools of 7 KB, fits a template": _with_tools(short, tools),
        "no system message, question of 1 KB": _timed(questions, directory),
    }


def _with_tools(requests: Sequence[dict[str, Any]], tools: list[dict[str, Any]]) -> tuple[float, float]:
    with_tools = [{**request, "tools": tools} for request in requests]
    directory = Directory()
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/stillroom.db")
        migrate.upgrade(db)
        traffic.send(db, with_tools[::3])
        discovery.turn(db)
        with db.read() as session:
            directory = templates.read(session)
        db.close()
    return _timed(with_tools, directory)


_SCHEMA = {"type": "object", "properties": {f"p{n}": {"type": "string", "description": "what it is"} for n in range(6)}}


def _timed(requests: Sequence[dict[str, Any]], directory: Directory) -> tuple[float, float]:
    bodies = [orjson.dumps(request) for request in requests]
    taken = []
    for _, body in zip(range(4000), cycle(bodies), strict=False):
        request = orjson.loads(body)  # texts that nobody has hashed yet
        taken.append(_time(lambda request=request: tasks.identify(request, directory=directory)))
    taken.sort()
    return round(median(taken), 1), round(taken[len(taken) * 99 // 100], 1)


def _time(call: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1000


def _merge_seconds(count: int) -> float:
    """One transaction, in which the captures of one of two tasks become the other's."""
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/stillroom.db")
        migrate.upgrade(db)
        requests = [{"model": "big", "messages": [{"role": "system", "content": text}]} for text in ("Sort.", "Translate.")]
        traffic.send(db, requests)
        with db.begin() as session:
            rows = session.execute(sa.select(ROWS)).mappings().all()
            assert session.execute(sa.select(sa.func.count()).select_from(KINDS)).scalar_one() == 2
            for start in range(0, count, 10_000):
                some = range(start, min(start + 10_000, count))
                session.execute(sa.insert(ROWS), [{**row, "id": f"cap_{row['kind_id']}_{n}"} for row in rows for n in some])
        kept, other = (tasks.identify(request).id for request in requests)
        began = time.perf_counter()
        with db.begin() as session:
            moves.merge(session, session.get_one(Task, kept), [session.get_one(Task, other)], by="bench")
        taken = time.perf_counter() - began
        with db.read() as session:
            assert moves.count(session, kept, 3 * count) == 2 * count + 2
        db.close()
    return round(taken, 3)


if __name__ == "__main__":
    main()
