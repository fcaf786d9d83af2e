"""Pairs: what redaction finds, what clustering costs, and how clusters of real traffic look: `python -m tests.bench.bench_pairs`.

Redaction: recall and precision by kind on sentences made by tests/pii.py, and on the same written in unusual ways. Clustering: time
and memory of making so many pairs of one task, some hundred a transaction, with planted near-duplicates: how many of them straddle
the split. With STILLROOM_DATA, a folder of recordings: clusters of real prompts. The last line is JSON; results/pairs.json is
written by `--record`.
"""

import argparse
import gzip
import json
import os
import random
import resource
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from sqlmodel import select

from distill import pairs, redaction, sketches
from distill.clusters import Clusters
from distill.redaction import ORDER
from store import migrate
from store.policy import Policy
from store.session import Database
from store.states import PairStatus
from store.tables import Pair
from tests import pii
from tests.distill.conftest import exchange
from tests.distill.test_clusters import edited
from tests.distill.test_sketches import prose

RECORD = Path(__file__).parent / "results" / "pairs.json"
SOURCES = ("intent_banking77_gold", "label_exposure_gpt4", "tools_tau_airline_gpt4o")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=3000, help="for redaction")
    parser.add_argument("--pairs", type=int, default=100_000, help="for clustering")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "command": f"python -m tests.bench.bench_pairs --texts {options.texts} --pairs {options.pairs}",
        "machine": {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)},
        "redaction": _redaction(pii.corpus(options.texts)),
        "redaction_of_what_is_obscured": {"recall": {k: v["recall"] for k, v in _redaction(pii.obscured()).items()}},
        "clustering": _clustering(options.pairs),
    }
    if folder := os.environ.get("STILLROOM_DATA"):
        found["real"] = {name: _real(Path(folder) / f"{name}.jsonl.gz") for name in SOURCES}
    table = Table("kind", "there", "recall", "precision", title="redaction")
    for kind, numbers in found["redaction"].items():
        table.add_row(kind, *map(str, numbers.values()))
    Console(width=120).print(table, {key: value for key, value in found.items() if key not in ("redaction", "command")})
    if options.record:
        RECORD.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


def _redaction(corpus: list[pii.Labelled]) -> dict[str, dict[str, float]]:
    """By kind; a value counts as found if the whole of it is replaced, as whatever kind."""
    there, hit, right, wrong = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for labelled in corpus:
        spans = redaction.find(labelled.text, ORDER)
        for start, end, kind in labelled.spans:
            there[kind] += 1
            hit[kind] += any(a <= start and end <= b for a, b, _ in spans)
        for a, b, kind in spans:
            (right if any(a < end and start < b for start, end, _ in labelled.spans) else wrong)[kind] += 1
    return {
        kind: {
            "there": there[kind],
            "recall": round(hit[kind] / there[kind], 4),
            "precision": round(right[kind] / max(1, right[kind] + wrong[kind]), 4),
        }
        for kind in ORDER
    }


def _clustering(count: int) -> dict[str, Any]:
    """Pairs of one task: a long system prompt, questions of 8 to 60 words, each tenth a near-duplicate of an earlier one."""
    rng = random.Random(0)
    fixed, bases = prose(rng, 400), [prose(rng, rng.randint(8, 60)) for _ in range(count // 10)]
    seconds, batches, planted = 0.0, [], {}
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/stillroom.db")
        migrate.upgrade(db)
        clusters: Clusters | None = None
        for start in range(0, count, 500):
            rows = []
            for number in range(start, start + 500):
                base = number if number < len(bases) else None
                if base is None and number % 10 == 0:
                    base = rng.randrange(len(bases))
                text = (
                    prose(rng, rng.randint(8, 60))
                    if base is None
                    else bases[base]
                    if number < len(bases)
                    else edited(rng, bases[base])
                )
                messages = [{"role": "system", "content": fixed}, {"role": "user", "content": text}]
                rows.append(exchange("", f"answer {number % 7}", id=f"cap_{number:026x}", request={"messages": messages}))
                if base is not None:
                    planted[rows[-1].id] = base
            with db.begin() as session:
                session.add_all(rows)
            began = time.perf_counter()
            clusters = Clusters(rows[0].task_id) if clusters is None else clusters
            with db.begin() as session:
                assert pairs.extract(session, rows[0].task_id, Policy(), clusters=clusters) == 500
            batches.append(time.perf_counter() - began)
            seconds += batches[-1]
        began = time.perf_counter()
        with db.read() as session:
            Clusters(rows[0].task_id).open(session)
            opened = time.perf_counter() - began
            sides = defaultdict(set)
            found = session.execute(select(Pair.capture_id, Pair.split, Pair.status)).all()
        for capture_id, split, status in found:
            if capture_id in planted and status == PairStatus.READY:
                sides[planted[capture_id]].add(split)
        db.close()
    return {
        "pairs": count,
        "seconds": round(seconds, 1),
        "ms_a_pair": round(1000 * seconds / count, 2),
        "first_and_last_batch_s": [round(batches[0], 2), round(sum(batches[-5:]) / 5, 2)],
        "open_again_s": round(opened, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "planted": len(planted) - len(bases),
        "straddling": sum(len(split) > 1 for split in sides.values()),
        "left_out": sum(status != PairStatus.READY for _, _, status in found),
    }


def _real(file: Path) -> dict[str, Any]:
    with gzip.open(file) as lines:
        prompts = [orjson.loads(line)["request"]["messages"] for line in lines]
    whole = [sketches.shingles(sketches.text(messages, fixed=True)) for messages in prompts]
    template = None
    for start in range(0, 2000, 500):
        template = sketches.learn(whole[start : start + 500], template)
    own = [sketches.varying(each, template) for each in whole]
    index, cluster = sketches.Index(), dict[int, int]()

    def find(number: int) -> int:
        while cluster[number] != number:
            number = cluster[number]
        return number

    for number, sketch in enumerate(sketches.sketch(own)):
        cluster[number] = number
        for other, share in index.near(sketch).items():
            if share >= sketches.NEAR:
                cluster[find(other)] = number
        index.add(sketch)
    sizes = Counter(find(number) for number in cluster)
    share = sum(map(len, own)) / sum(map(len, whole))
    return {"prompts": len(prompts), "varying_share": round(share, 4), "clusters": len(sizes), "biggest": max(sizes.values())}


if __name__ == "__main__":
    main()
