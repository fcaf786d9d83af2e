"""Lineage and erasure of a large task: seconds for so many captures, one pair each, on SQLite.

    python -m tests.bench.bench_lineage [CAPTURES]

One capture in a hundred is the user's who is forgotten. Ends with a JSON line, and records it in results/lineage.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from admin import erase
from distill import datasets, lineage, pairs
from distill.settings import DistillSettings
from store import captures, migrate, tasks
from store.packing import Packer
from store.policy import Policy
from store.session import Database
from store.states import PairStatus, Split
from store.tables import Capture
from tests import chain

RESULTS = Path(__file__).parent / "results" / "lineage.json"
RULES = "You sort letters into departments. Answer with one word, the department, in lower case. Never explain your answer. " * 8
BATCH = 500


@contextmanager
def timed(results: dict[str, Any], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    results[name] = round(time.perf_counter() - began, 1)
    print(f"{name}: {results[name]} s", file=sys.stderr)


def fill(db: Database, number: int) -> str:
    """Captures and their pairs, each fourth held out; clusters and redaction have benches of their own."""
    packer = Packer()
    made: list[Capture] = []
    for start in range(0, number, BATCH):
        made = [chain.exchange(n, RULES, "ada" if n % 100 == 7 else f"person {n % 97}") for n in range(start, start + BATCH)]
        with db.begin() as session:
            tasks.ensure(session, tasks.identify(orjson.loads(made[0].request)))
            session.flush()
            captures.write(session, made, packer)
            for n, capture in enumerate(made):
                pair = pairs.judge(capture, Policy())
                pair.capture_sha256, pair.status = capture.digest(), PairStatus.READY
                pair.split, pair.cluster = Split.HOLDOUT if n % 4 == 0 else Split.TRAIN, pair.conversation
                session.add(pair)
    return made[0].task_id


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    results: dict[str, Any] = {"captures": number}
    with tempfile.TemporaryDirectory() as home:
        settings = DistillSettings(home=Path(home), database_url=None)
        db = Database(settings.url)
        migrate.upgrade(db)
        with timed(results, "fill_seconds"):
            task_id = fill(db, number)
        with timed(results, "freeze_seconds"):
            dataset = datasets.freeze(db, task_id, Policy(holdout_max=number), settings)
        adapter = chain.train(db, dataset, settings)
        with timed(results, "verify_seconds"):
            hops = lineage.verify(db, adapter.id, settings)
        results["verified"] = sum(hop.checked for hop in hops)
        results["failures"] = sum(hop.failures for hop in hops)
        results["database_mib"] = round((settings.home_path / "stillroom.db").stat().st_size / 2**20)
        with timed(results, "erase_seconds"):
            report = erase.erase(db, settings, erase.Wanted(user="ada"), by="bench", say=lambda line: print(line, file=sys.stderr))
        results["erased"] = report.captures
        db.close()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({"lineage": results}))


if __name__ == "__main__":
    main()
