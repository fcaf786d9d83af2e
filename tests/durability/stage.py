"""A teacher, a proxy and clients, put up for one scenario and judged at its end."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.session import Database
from tests.durability.ledger import Verdict, compare
from tests.durability.load import Load
from tests.durability.processes import Proxy
from tests.durability.teacher import Teacher


@dataclass
class Stage:
    """What runs. `load` begins when it is asked for."""

    teacher: Teacher
    proxy: Proxy
    database: str

    def load(self, **how: Any) -> Load:
        return Load(self.proxy.port, **how)

    async def judge(self, load: Load, *, uncaptured: int | None = None) -> Verdict:
        """Compare, when all is in the database."""
        db = Database(self.database)
        try:
            return await asyncio.to_thread(compare, load.ledger, db, uncaptured=uncaptured)
        finally:
            db.close()

    def result(self, load: Load, verdict: Verdict, **more: Any) -> dict[str, Any]:
        """What is recorded of a run."""
        found = dataclasses.asdict(verdict)
        examples = found.pop("examples")
        return {
            **more,
            "workers": self.proxy.workers_wanted,
            **found,
            "broken": load.ledger.broken,
            "breaks": dict(load.ledger.breaks),
            "errors": dict(load.ledger.errors),
            "rejected": len([*(self.proxy.spool / "rejected").glob("*")]),
            **({"examples": examples} if examples else {}),
        }


@asynccontextmanager
async def staged(
    home: Path, *, teacher: Teacher | None = None, workers: int = 3, database: str | None = None, **settings: Any
) -> AsyncIterator[Stage]:
    """A teacher, and a proxy that is not started. Whatever happens, no process is left behind."""
    teacher = teacher or Teacher()
    home.parent.mkdir(parents=True, exist_ok=True)
    proxy = Proxy(home, await teacher.start(), workers=workers, database=database, **settings)
    try:
        yield Stage(teacher, proxy, database or f"sqlite:///{home}/stillroom.db")
    finally:
        if proxy.alive:
            proxy.kill()
        teacher.close()
