"""STILLROOM_DURABILITY=disk: what is acknowledged has been flushed, and many share a flush."""

import uvloop

from tests.durability import checks, power

FLUSH = 0.5  # seconds


def test_an_answer_ends_after_a_flush_begun_when_it_was_whole_and_fifty_share_a_few(tmp_path):
    result = uvloop.run(power.slow(tmp_path / "home", requests=50, seconds=FLUSH))
    assert checks.wrong("slow", result) == []
    assert result["acknowledged_before_a_flush"] == 0
    assert result["earliest_end_after"] >= FLUSH
    assert result["first_part_after"] < FLUSH  # a stream is not held back, but for its end
    assert result["flushes"] <= 6


def test_loss_of_power_takes_nothing_that_was_acknowledged(tmp_path):
    result = uvloop.run(power.run(tmp_path / "home", durability="disk"))
    assert checks.wrong("power", result) == []


def test_without_flushes_loss_of_power_would_take_some_as_the_documentation_says(tmp_path):
    result = uvloop.run(power.run(tmp_path / "home", durability="process"))
    assert result["missing"] > 0
    assert (result["twice"], result["altered"], result["strange"]) == (0, 0, 0)
