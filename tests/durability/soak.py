"""Hours in minutes: nothing grows while clients come, ask, and leave in the middle."""

import asyncio
import os
import signal
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.durability import report
from tests.durability.power import HOOKS
from tests.durability.processes import Proxy
from tests.durability.stage import staged

EVERY = 2.0  # seconds between two samples


async def run(home: Path, *, minutes: float, rate: float = 150.0, leave: float = 0.1) -> dict[str, Any]:
    """`leave`: the share of requests that are broken off by their client."""
    tasks = home.parent / "tasks"
    async with staged(home, test_tasks=tasks) as stage:
        proxy = stage.proxy
        await proxy.start(path=HOOKS)
        await asyncio.sleep(1.0)
        idle = await _tasks(proxy, tasks)
        load = stage.load(rate=rate, leave=leave)
        samples: dict[int, list[dict[str, float]]] = defaultdict(list)
        began = time.monotonic()
        while (gone := time.monotonic() - began) < minutes * 60:
            await asyncio.sleep(EVERY)
            counts = await _tasks(proxy, tasks)
            for pid in [proxy.pid, *proxy.workers()]:
                samples[pid].append(_sample(pid) | {"tasks": counts.get(pid, 0)})
            if int(gone / EVERY) % 15 == 0:
                report.progress("soak", round(gone / 60, 1), minutes, _line(samples[proxy.workers()[0]][-1]))
        reached = load.rate
        await load.stop()
        left = sum(entry.left for entry in load.ledger.entries)
        await asyncio.sleep(1.5)
        afterwards = await _tasks(proxy, tasks)
        same = set(idle) == set(afterwards)
        code = await proxy.stop()
        verdict = await stage.judge(load)
        return stage.result(
            load, verdict, minutes=minutes, acknowledged_per_second=round(reached, 1), left=left, exit_code=code,
            same_processes=same, tasks_idle=max(idle.values()), tasks_afterwards=max(afterwards.values()),
            parent=_trend(samples.pop(proxy.pid)), per_worker=[_trend(each) for each in samples.values()],
            spool_empty=proxy.empty(),
        )  # fmt: skip


def _sample(pid: int) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "descriptors": len([*Path(f"/proc/{pid}/fd").iterdir()]),
        "threads": int(status["Threads"]),
    }


async def _tasks(proxy: Proxy, file: Path) -> dict[int, int]:
    """How many asyncio tasks each worker has."""
    workers, counts = proxy.workers(), {}
    for pid in workers:
        os.kill(pid, signal.SIGUSR2)
    async with asyncio.timeout(10):
        for pid in workers:
            path = Path(f"{file}.{pid}")
            while not path.exists():
                await asyncio.sleep(0.02)
            counts[pid] = int(path.read_text())
            path.unlink()
    return counts


def _trend(samples: list[dict[str, float]]) -> dict[str, list[float]]:
    """Medians of the second quarter of the time, the first one being warm-up, and of the last."""
    quarter = len(samples) // 4
    then, now = samples[quarter : 2 * quarter], samples[-quarter:]
    return {name: [round(statistics.median(each[name] for each in part), 1) for part in (then, now)] for name in samples[0]}


def _line(sample: dict[str, float]) -> str:
    return ", ".join(f"{value:.0f} {name}" for name, value in sample.items())
