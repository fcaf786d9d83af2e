"""A disk is full: the spool's, the database's, or the one that both are on."""

import asyncio
import re
from pathlib import Path
from typing import Any, Literal

from tests.durability.disks import small
from tests.durability.stage import staged
from tests.durability.teacher import Teacher

What = Literal["spool", "database", "both"]


async def run(
    folder: Path,
    *,
    what: What,
    policy: Literal["serve", "refuse"] = "serve",
    seconds: float = 4.0,
    rate: float = 120.0,
    mount: bool = True,
) -> dict[str, Any]:
    """Full for so many seconds under load, in which streams are on their way; then there is room again."""
    with small(folder / "small", parent=what != "spool", workers=what != "database", mount=mount) as disk:
        home = folder / "home" if what == "database" else disk.folder / "home"
        database = f"sqlite:///{folder if what == 'spool' else disk.folder}/stillroom.db"
        async with staged(
            home, teacher=Teacher(pause=0.15), database=database, when_full=policy, log=folder / "proxy.log"
        ) as stage:
            proxy = stage.proxy
            await proxy.start()
            load = stage.load(rate=rate)
            await load.acknowledged(100)
            disk.fill(proxy)
            full = load.ledger.acknowledged
            await asyncio.sleep(seconds)
            ready = await asyncio.to_thread(proxy.ready)
            during = load.ledger.acknowledged - full
            refused = sum(load.ledger.errors.values())
            disk.free(proxy)
            await asyncio.sleep(2.5)  # a minute of the clients': spool and database are tried again each second
            before = await asyncio.to_thread(proxy.metric, "stillroom_uncaptured_total")
            later = sum(load.ledger.errors.values())
            await load.acknowledged(100)
            await load.stop()
            await asyncio.sleep(1.5)  # workers publish their counts each second
            uncaptured = int(await asyncio.to_thread(proxy.metric, "stillroom_uncaptured_total"))
            after = await asyncio.to_thread(proxy.ready)
            code = await proxy.stop()
            verdict = await stage.judge(load, uncaptured=uncaptured if policy == "serve" else None)
            return stage.result(
                load, verdict, disk=disk.kind, full=what, policy=policy, seconds_full=seconds, acknowledged_while_full=during,
                refused_while_full=refused, refused_when_there_was_room=sum(load.ledger.errors.values()) - later,
                asked_and_refused=len(_refused(load) & stage.teacher.asked), uncaptured=uncaptured,
                uncaptured_when_there_was_room=uncaptured - int(before), exit_code=code, spool_empty=proxy.empty(),
                told=_told(proxy.log.read_text()), ready={name: ready[name] for name in ("spool", "database", "uncaptured")},
                ready_after={name: after[name] for name in ("spool", "database")},
            )  # fmt: skip


def _refused(load: Any) -> set[int]:
    return {entry.number for entry in load.ledger.entries if entry.status >= 400}


def _told(log: str) -> list[str]:
    """The kinds of warnings and errors in the log."""
    return sorted({re.sub(r"cap_\w+|\d+", "N", line.split(" stillroom.proxy: ")[-1])[:120] for line in log.splitlines() if
                   re.search(r" (WARNING|ERROR) ", line)})  # fmt: skip
