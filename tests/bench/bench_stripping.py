"""Instruction stripping on real traffic: what is learned from the older half of each task, and what it does to the newer one.

    STILLROOM_DATA=FOLDER python -m tests.bench.bench_stripping

Prints a table, ends with a JSON line, and records it in results/stripping.json. Microseconds are of `prompts.apply`, a request.
"""

import gzip
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson

from distill import stripping
from store.prompts import Piece, Transform, UnseenTemplate, apply

SETS = ("intent_banking77_gold", "label_exposure_gpt4", "mixed_openai_evals_gold", "tools_tau_airline_gpt4o")
RESULTS = Path(__file__).parent / "results" / "stripping.json"
Prompt = list[dict[str, Any]]


def prompts(file: Path) -> dict[str, list[Prompt]]:
    """By task, in the file's order."""
    found: dict[str, list[Prompt]] = defaultdict(list)
    with gzip.open(file) as lines:
        for line in lines:
            row = orjson.loads(line)
            found[row["meta"].get("task") or "all"].append(row["request"]["messages"])
    return found


def microseconds(transform: Transform, requests: list[Prompt]) -> float:
    """The least over rounds of the mean over requests, those that do not fit among them. Of processor time: others run here too."""
    rounds = []
    for _ in range(15):
        began = time.thread_time()
        for messages in requests:
            try:
                apply(transform, messages)
            except UnseenTemplate:
                continue
        rounds.append((time.thread_time() - began) / len(requests) * 1e6)
    return min(rounds)


def measure(name: str, rows: list[Prompt]) -> dict[str, Any]:
    """One task: learned from its first half."""
    half = len(rows) // 2
    began = time.perf_counter()
    transform = stripping.learn(rows[:half])
    seconds = time.perf_counter() - began
    result: dict[str, Any] = {"rows": len(rows), "learn_seconds": round(seconds, 2)}
    if transform is None:
        return {"task": name, **result, "stripped": False}
    newer = rows[half:]
    covered = [each for each in newer if stripping.covers(transform, each)]
    before = sum(len(json.dumps(each)) for each in covered)
    after = sum(len(json.dumps(apply(transform, each))) for each in covered)
    return {
        "task": name,
        **result,
        "stripped": True,
        "fixed_characters": stripping.saved(transform),
        "share_of_newer_covered": round(len(covered) / len(newer), 4),
        "characters_left": round(after / max(before, 1), 4),
        "microseconds": round(microseconds(transform, newer), 2),
    }


def made_up() -> dict[str, Any]:
    """A long system message with dates and passages: a kilobyte between two literals, eight of them."""
    fixed = tuple(f"Rule {n}: " + "never say what you cannot know, and keep to the form. " * 10 for n in range(8))
    transform = Transform((Piece("system", fixed),))
    system = "".join(text + "A passage of somebody's about something, found by search. " * 20 for text in fixed[:-1]) + fixed[-1]
    requests = [[{"role": "system", "content": system}, {"role": "user", "content": "x"}]] * 1000
    return {"task": "eight fixed texts in 12,000 characters", "microseconds": round(microseconds(transform, requests), 2)}


def main() -> None:
    if "STILLROOM_DATA" not in os.environ:
        sys.exit("STILLROOM_DATA names no folder with recorded traffic")
    folder = Path(os.environ["STILLROOM_DATA"])
    results = [made_up()]
    for name in SETS:
        for task, rows in prompts(folder / f"{name}.jsonl.gz").items():
            results.append(measure(f"{name}/{task}" if task != "all" else name, rows))
    for line in results:
        print("  ".join(f"{key}={value}" for key, value in line.items()))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({"stripping": results}))


if __name__ == "__main__":
    main()
