"""kill -9 of whichever worker, again and again under load; now and then of the parent, which is then started again."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from tests.durability import report
from tests.durability.load import Load
from tests.durability.stage import staged

SHORTEST = 0.4  # seconds between two kills, at most so many more than needed


async def run(
    home: Path, *, kills: int, floor: float = 105.0, parents: float = 0.05, rate: float = 300.0, database: str | None = None
) -> dict[str, Any]:
    """`parents`: the share of kills that hit the parent. The next kill waits until `floor` answers a second have been acknowledged
    since the first: a machine that is slow in starting processes kills slower, not emptier ones.
    """
    async with staged(home, database=database) as stage:
        proxy = stage.proxy
        await proxy.start()
        load = stage.load(rate=rate)
        await load.acknowledged(50)
        began, before, of_parent = time.monotonic(), load.ledger.acknowledged, 0
        for done in range(1, kills + 1):
            await asyncio.sleep(random.uniform(0.05, SHORTEST))
            while not (serving := proxy.serving()) or _rate(load, before, began) < floor:
                await asyncio.sleep(0.02)
            if random.random() < parents:
                of_parent += 1
                proxy.kill()
                await proxy.start()
            else:
                proxy.kill(random.choice(serving))
            if done % 25 == 0:
                report.progress("kills", done, kills, f"{_rate(load, before, began):.0f}/s acknowledged")
        seconds, reached = time.monotonic() - began, _rate(load, before, began)
        await load.stop()
        code = await proxy.stop()
        verdict = await stage.judge(load)
        return stage.result(
            load, verdict, kills=kills, of_parent=of_parent, seconds=round(seconds, 1), acknowledged_per_second=round(reached, 1),
            exit_code=code, spool_empty=proxy.empty(),
        )  # fmt: skip


def _rate(load: Load, before: int, began: float) -> float:
    return (load.ledger.acknowledged - before) / (time.monotonic() - began)
