"""Loss of power, as far as it can be played: processes are killed, and what no flush had brought to the disk is cut off."""

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

from tests.durability.load import Load
from tests.durability.stage import staged
from tests.durability.teacher import Teacher

HOOKS = Path(__file__).parent / "hooks"


async def run(home: Path, *, durability: str, seconds: float = 5.0, rate: float = 150.0) -> dict[str, Any]:
    """Power is cut under load; then the proxy is started again."""
    syncs = home.parent / "syncs"
    async with staged(home, durability=durability, test_syncs=syncs, test_sync_seconds=0.05) as stage:
        proxy = stage.proxy
        await proxy.start(path=HOOKS)
        load = stage.load(rate=rate)
        await asyncio.sleep(seconds)
        workers = proxy.workers()
        proxy.kill()
        async with asyncio.timeout(10):
            while any(Path(f"/proc/{pid}").exists() for pid in workers):
                await asyncio.sleep(0.02)
        cut = _cut(proxy.spool, read(syncs))
        await load.stop()
        await proxy.start()
        await proxy.drained()
        code = await proxy.stop()
        verdict = await stage.judge(load)
        return stage.result(load, verdict, durability=durability, seconds=seconds, bytes_cut=cut, exit_code=code)


async def slow(home: Path, *, requests: int, seconds: float) -> dict[str, Any]:
    """Each flush takes so long: when do answers end, and how many flushes do requests at the same time need?"""
    syncs = home.parent / "syncs"
    async with staged(
        home, teacher=Teacher(delay=0.0, pause=0.02), workers=1, durability="disk", test_syncs=syncs, test_sync_seconds=seconds
    ) as stage:
        await stage.proxy.start(path=HOOKS)
        first = stage.load(rate=10, clients=1)  # makes the segment, and a connection to the teacher
        await first.acknowledged(2)
        await first.stop()
        await asyncio.sleep(seconds)
        before = len(_segments(read(syncs)))
        load = Load(stage.proxy.port, rate=requests / 1000, clients=requests, at_once=True, ledger=first.ledger)
        began = time.monotonic()
        await load.acknowledged(requests)
        took = time.monotonic() - began
        lines = _segments(read(syncs))[before:]
        firsts = [entry.first_at - entry.sent_at for entry in load.ledger.entries[-requests:] if entry.streamed]
        lasts = [entry.acknowledged_at - entry.sent_at for entry in load.ledger.entries[-requests:]]
        early = sum(entry.acknowledged_at < lines[0]["at"] for entry in load.ledger.entries[-requests:])
        await load.cancel()
        code = await stage.proxy.stop()
        verdict = await stage.judge(load)
        return stage.result(
            load, verdict, seconds_a_flush=seconds, flushes=len(lines), seconds=round(took, 3),
            first_part_after=round(min(firsts), 3),
            earliest_end_after=round(min(lasts), 3), acknowledged_before_a_flush=early, exit_code=code,
        )  # fmt: skip


def read(syncs: Path) -> list[dict[str, Any]]:
    """All flushes that have ended, in order."""
    return [json.loads(line) for line in syncs.read_text().splitlines()] if syncs.exists() else []


def _segments(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["path"].endswith(".seg")]


def _cut(spool: Path, lines: list[dict[str, Any]]) -> int:
    """Take from the spool what was never flushed: ends of segments, segments and folders whose names no flushed folder has."""
    sizes = {line["path"]: line["size"] for line in lines if line["names"] is None}
    names = {f"{line['path']}/{name}" for line in lines for name in line["names"] or ()}
    cut = 0
    for folder in [path for path in spool.glob("[!.]*-*") if path.is_dir()]:
        for path in folder.glob("*.seg"):
            size = path.stat().st_size
            kept = min(size, sizes.get(str(path), 0)) if {str(path), str(folder)} <= names else 0
            cut += size - kept
            with path.open("r+b") as file:
                file.truncate(kept)
        if str(folder) not in names:
            shutil.rmtree(folder)
    return cut
