"""Half a minute of the twenty that `python -m tests.durability soak` takes."""

import uvloop

from tests.durability import checks, soak


def test_half_a_minute_with_a_tenth_of_the_clients_leaving_lets_nothing_grow(tmp_path):
    result = uvloop.run(soak.run(tmp_path / "home", minutes=0.5))
    assert checks.wrong("soak", result) == []
    assert result["left"] > 50
