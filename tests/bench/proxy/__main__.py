"""The table: `python -m tests.bench.proxy`. Its last line is one line of JSON; recorded in tests/bench/results/proxy.json.

Mock and load run on one core, the target that is measured on the other, in an order drawn anew each round; the others are stopped.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from admin.teachers import tickets
from tests.bench.proxy import procstat
from tests.bench.proxy.load import HEADERS, chat_body
from tests.bench.proxy.targets import ROOT, NotMeasured, Target, all_targets

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
UPSTREAM = "127.0.0.1:9100"
TARGET_CORE, LOAD_CORE = 0, 1
RUST = "sglang-router"
PAGES = ("page_count", "freelist_count", "page_size")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, separated by commas; direct is always there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--many", type=int, default=1000, help="slow streams at once, for memory")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/bench", help="the built mock, and the peers' environments")
    parser.add_argument("--record", action="store_true", help="write tests/bench/results/proxy.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    wanted = {"direct", *options.only.split(",")} if options.only else None
    targets = [t for t in all_targets(options.cache.resolve()) if wanted is None or t.name in wanted]
    run = options.cache.resolve() / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    console = Console(stderr=True)
    mock = start_mock(options.cache.resolve())
    live: list[Target] = []
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for target in targets:
            try:
                target.start(run, UPSTREAM, TARGET_CORE)
            except (NotMeasured, OSError) as why:
                console.print(f"[yellow]not measured:[/] {target.name}: {why}")
                target.stop()
                continue
            live.append(target)
            closed(target, run, 3)  # pools, caches and compilers warm up
            target.signal(signal.SIGSTOP)
        for number in range(options.rounds):
            for target in random.sample(live, len(live)):
                target.signal(signal.SIGCONT)
                time.sleep(0.2)
                found.setdefault(target.name, []).append(measure(target, run, options))
                target.signal(signal.SIGSTOP)
            console.print(f"round {number + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}")
        ours = next((t for t in live if t.name == "stillroom"), None)
        stored = None
        if ours is not None:
            ours.signal(signal.SIGCONT)
            settle(run)
            stored = stored_against_raw(ours, run)
    finally:
        for target in targets:
            target.stop()
        mock.terminate()
    best = {name: {key: least(rounds, key) for key in rounds[0]} for name, rounds in found.items()}
    Console(width=160).print(table(best))
    result = summarize(best, stored)
    if options.record:
        machine = {"cores": os.cpu_count(), "rounds": options.rounds, "seconds": options.seconds}
        record = {"command": "make bench-proxy", "machine": machine, "targets": best, "result": result}
        (RESULTS / "proxy.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(result))


def start_mock(cache: Path) -> "subprocess.Popen[bytes]":
    """The upstream, built if need be."""
    cache.mkdir(parents=True, exist_ok=True)
    built = cache / "mock_upstream"
    subprocess.run(["cc", "-O2", "-o", built, HERE / "mock_upstream.c"], check=True)
    mock = subprocess.Popen(["taskset", "-c", str(LOAD_CORE), built, "-p", UPSTREAM.split(":")[1]], stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    if mock.poll() is not None:
        raise SystemExit(f"the mock did not start: is {UPSTREAM} taken?")
    return mock


def measure(target: Target, run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One round's figures of one target."""
    found = closed(target, run, options.seconds)
    rate = generate("rate", target, seconds=options.seconds, rate=min(200, target.most_rate))
    streams = generate("streams", target, seconds=options.seconds, streams=min(50, target.most_streams))
    many = generate("streams", target, seconds=2, streams=options.many, delay=100) if target.most_streams > options.many else {}
    return {
        **found,
        "p99_us": rate["p99_us"],
        "cpu_us_per_chunk": streams["cpu_us_per_chunk"],
        "chunk_p99_us": streams["p99_us"],
        "resident_mib": many.get("resident_mib") or None,
        "failed": found["failed"]
        + rate["failed"]
        + sum(each.get(key, 0) for each in (streams, many) for key in ("failed", "short")),
    }


def closed(target: Target, run: Path, seconds: int) -> dict[str, Any]:
    """wrk, 32 connections, as fast as it goes."""
    body = run / "body.json"
    body.write_bytes(chat_body("mock", stream=False))
    headers = "".join(f"{name}: {value}\n" for name, value in HEADERS.items())
    environment = {**os.environ, "BENCH_BODY": str(body), "BENCH_HEADERS": headers}
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(HERE / "chat.lua"), target.url]
    began = procstat.cpu_seconds(target.pid)
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    during = procstat.cpu_seconds(target.pid) - began
    result = json.loads(re.search(r"^JSON (.*)$", said, re.MULTILINE)[1])  # type: ignore[index]
    requests = result["requests"]
    found = {"cpu_us": during / requests * 1e6 if target.pid else None, "requests_per_second": requests / result["seconds"]}
    if target.name == "stillroom":
        settle(run)
        found["cpu_us_stored"] = (procstat.cpu_seconds(target.pid) - began) / requests * 1e6
    return {**found, "failed": result["failed"]}


def generate(kind: str, target: Target, **options: float) -> dict[str, Any]:
    """A load generator's figures."""
    named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "tests.bench.proxy.load", kind, "--url", target.url, *named]
    done = subprocess.run([*command, "--pid", str(target.pid)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} on {target.name}: {done.stderr[-500:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def settle(run: Path, seconds: float = 600) -> None:
    """Wait until what stillroom has captured is in its database."""
    deadline = time.monotonic() + seconds
    while sum(path.stat().st_size for path in (run / "stillroom/spool").glob("*/*.seg")) > 0:
        if time.monotonic() > deadline:
            raise SystemExit("the spool is not empty after ten minutes")
        time.sleep(0.5)


def stored_against_raw(target: Target, run: Path, count: int = 2000) -> float:
    """Bytes by which the database grows for each byte of distinct requests below one system prompt, and of their answers."""
    before = stored(run)
    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(8) as pool:

        def exchange(ticket: tickets.Ticket) -> int:
            answer = client.post(target.url, json=tickets.request(ticket, model="mock"), headers=HEADERS)
            return len(answer.request.content) + len(answer.content)

        raw = sum(pool.map(exchange, tickets.draw(1, count)))
    settle(run)
    return (stored(run) - before) / raw


def stored(run: Path) -> int:
    """Bytes in use in stillroom's database."""
    with sqlite3.connect(run / "stillroom/stillroom.db") as database:
        pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in PAGES)
    return int((pages - free) * size)


def least(rounds: list[dict[str, Any]], key: str) -> float | None:
    """The best of a figure: noise only ever adds. Failures add up."""
    values = [found[key] for found in rounds if found.get(key) is not None]
    if key == "failed":
        return sum(values)
    return (max if key == "requests_per_second" else min)(values, default=None)


def summarize(best: dict[str, dict[str, float | None]], stored: float | None) -> dict[str, float | None]:
    """Ratios and figures of stillroom; None where a target was not measured."""

    def ratio(key: str, other: str) -> float | None:
        ours, theirs = best.get("stillroom", {}).get(key), best.get(other, {}).get(key)
        return round(ours / theirs, 4) if ours is not None and theirs else None

    ours, direct = best.get("stillroom", {}), best.get("direct", {})
    added = [ours.get("p99_us"), direct.get("p99_us")]
    stored_ratio = None if stored is None else round(stored, 4)
    memory = ours.get("resident_mib")
    return {
        "cpu_vs_nginx": ratio("cpu_us", "nginx"),
        "cpu_vs_litellm": ratio("cpu_us", "litellm"),
        "cpu_vs_rust": ratio("cpu_us", RUST),
        "chunk_vs_nginx": ratio("cpu_us_per_chunk", "nginx"),
        "added_p99_ms": None if None in added else round((added[0] - added[1]) / 1e3, 3),  # type: ignore[operator]
        "rss_1000_streams_mib": None if memory is None else round(memory, 1),
        "stored_vs_raw": stored_ratio,
    }


def table(best: dict[str, dict[str, float | None]]) -> Table:
    """All figures, a target a line."""
    columns = {
        "cpu_us": "CPU µs a request", "cpu_us_stored": "… stored", "requests_per_second": "requests/s",
        "cpu_us_per_chunk": "CPU µs a chunk", "p99_us": "p99 µs at 200/s", "chunk_p99_us": "chunk p99 µs",
        "resident_mib": "MiB, many streams", "failed": "failed",
    }  # fmt: skip
    shown = Table("target", *columns.values())
    for name, figures in best.items():
        shown.add_row(name, *("" if figures.get(key) is None else f"{figures[key]:,.1f}" for key in columns))
    return shown


if __name__ == "__main__":
    main()
