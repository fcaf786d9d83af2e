"""kill -9 under load: a hundred of the thousand that `python -m tests.durability kills` does."""

import pytest
import uvloop

from tests.durability import checks, kills


@pytest.mark.timeout(600)  # it kills as fast as the machine starts processes
def test_a_hundred_kills_lose_nothing_that_was_acknowledged_and_store_nothing_twice(tmp_path):
    result = uvloop.run(kills.run(tmp_path / "home", kills=100))
    assert checks.wrong("kills", result) == []
    assert result["kills"] == 100


def test_kills_lose_nothing_on_postgresql(tmp_path, postgres_blank):
    result = uvloop.run(kills.run(tmp_path / "home", kills=8, parents=0.2, database=postgres_blank))
    assert checks.wrong("kills", result) == []
