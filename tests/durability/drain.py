"""SIGTERM under load: what has been accepted is answered, everything else is turned away, nothing is left behind."""

import asyncio
import time
from pathlib import Path
from typing import Any

from tests.durability.stage import staged
from tests.durability.teacher import Teacher


async def run(home: Path, *, rate: float = 150.0, pause: float = 0.5) -> dict[str, Any]:
    """Streams take six times `pause` seconds."""
    async with staged(home, teacher=Teacher(delay=1.0, pause=pause)) as stage:
        proxy = stage.proxy
        await proxy.start()
        load = stage.load(rate=rate, clients=200)
        await load.acknowledged(200)
        open_then = stage.teacher.open
        began = time.monotonic()
        stopping = asyncio.create_task(proxy.stop())
        await asyncio.sleep(1.0)
        turned_away = await _turned_away(proxy.port)
        open_later = stage.teacher.open
        code = await stopping
        took = time.monotonic() - began
        await load.stop()
        verdict = await stage.judge(load)
        accepted = [entry for entry in load.ledger.entries if entry.number in stage.teacher.asked]
        return stage.result(
            load, verdict, seconds=round(took, 1), open_at_the_signal=open_then, open_a_second_later=open_later,
            accepted=len(accepted), accepted_and_failed=sum(not entry.acknowledged for entry in accepted),
            new_connections_refused=turned_away, exit_code=code, spool_folders_left=len(proxy.folders()),
        )  # fmt: skip


async def _turned_away(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False
