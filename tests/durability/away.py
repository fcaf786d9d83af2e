"""The database is away: at the start, under load, and when the proxy is stopped."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from tests.durability import report
from tests.durability.outage import Outage
from tests.durability.stage import staged


async def run(
    home: Path,
    at_start: Outage,
    under_load: Outage,
    *,
    seconds: float,
    at_start_seconds: float = 5.0,
    rate: float = 120.0,
    database: str | None = None,
) -> dict[str, Any]:
    """Away for `at_start_seconds` from before the start on; later for `seconds`; and again while it is stopped."""
    async with staged(home, database=database) as stage:
        proxy = stage.proxy
        await asyncio.to_thread(at_start.begin)
        try:
            await proxy.start()
            load = stage.load(rate=rate)
            seen = [await _watch(proxy.url, at_start_seconds, "away at the start")]
        finally:
            await asyncio.to_thread(at_start.end)
        await _back(proxy.url)
        await load.acknowledged(100)
        await asyncio.to_thread(under_load.begin)
        try:
            seen.append(await _watch(proxy.url, seconds, "away under load"))
        finally:
            await asyncio.to_thread(under_load.end)
        began = time.monotonic()
        await _back(proxy.url)
        await load.acknowledged(100)
        await asyncio.to_thread(under_load.begin)
        try:
            await load.acknowledged(100)
            await load.stop()
            stopping = time.monotonic()
            codes = [await proxy.stop()]
            stopped = time.monotonic() - stopping
        finally:
            await asyncio.to_thread(under_load.end)
        kept = not proxy.empty()
        await proxy.start()
        await _back(proxy.url)
        await proxy.drained()
        caught_up = time.monotonic() - began
        codes.append(await proxy.stop())
        verdict = await stage.judge(load)
        return stage.result(
            load, verdict, at_start=type(at_start).__name__, under_load=type(under_load).__name__,
            seconds_away=seconds, seconds_away_at_start=at_start_seconds, not_ready=sum(seen), exit_codes=codes,
            seconds_to_stop=round(stopped, 1), kept_for_the_next_start=kept, seconds_to_catch_up=round(caught_up, 1),
            acknowledged_per_second=round(load.ledger.acknowledged / load.seconds, 1), spool_empty=proxy.empty(),
        )  # fmt: skip


async def _watch(url: str, seconds: float, what: str) -> int:
    """Let so much time go by; how often /readyz did not answer 200."""
    not_ready, end = 0, time.monotonic() + seconds
    async with httpx.AsyncClient() as client:
        while (left := end - time.monotonic()) > 0:
            not_ready += (await client.get(f"{url}/readyz", timeout=10)).status_code != 200
            if int(left) % 30 == 0 and seconds > 30:
                report.progress(what, round(seconds - left), seconds)
            await asyncio.sleep(min(left, 1.0))
    return not_ready


async def _back(url: str) -> None:
    """Wait until the drainer can write again: it is the last to get a processor that others want."""
    async with httpx.AsyncClient() as client, asyncio.timeout(180):
        while (await client.get(f"{url}/readyz", timeout=10)).json()["database"] != "ok":
            await asyncio.sleep(0.1)
