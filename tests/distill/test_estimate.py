"""What a training will take: counted and expected, without a machine's noise."""

from dataclasses import asdict

import pytest

from distill import estimate, recipe
from distill.estimate import Estimate, Pace, Work
from distill.render import Example

PACE = Pace(start_seconds=10.0, token_seconds=0.01, peak_memory=5, measured="a few steps")
WORK = Work(rows=100, tokens=100_000, computed=10_000, validation=300)


def test_seconds_follow_from_tokens_epochs_and_the_share_of_the_rows() -> None:
    choices = {"epochs": 2, "objective": "sft"}
    whole = estimate.expect(WORK, PACE, choices, 1.0, 36.0)
    assert whole.seconds == pytest.approx(10 + 0.01 * 2 * (10_000 + 100))
    assert whole.usd == pytest.approx(whole.seconds * 0.01)
    assert estimate.expect(WORK, PACE, choices, 0.25, 0.0).seconds == pytest.approx(10 + 0.01 * 2 * (2_500 + 100))
    assert estimate.expect(WORK, PACE, {**choices, "objective": "dpo"}, 1.0, 0.0).seconds > whole.seconds


def test_what_is_stored_is_read_back() -> None:
    found = estimate.expect(WORK, PACE, {"epochs": 1}, 1.0, 1.0)
    assert Estimate.read(asdict(found)) == found


def test_shared_beginnings_are_counted_once_a_step() -> None:
    choices = recipe.load().model_copy(update={"batch_rows": 4})
    rows = [Example(prompt=[*range(100), 200 + n, 1], completion=[7, 2]) for n in range(8)]
    work = estimate.count(rows, choices, 8)
    assert (work.rows, work.tokens) == (8, 8 * 103)
    assert work.computed == 2 * (100 + 4 * 3)
    assert estimate.count(rows, choices.model_copy(update={"share_prefix": False}), 8).computed == work.tokens


def test_the_turns_of_a_session_are_counted_in_one_step_as_they_are_trained() -> None:
    choices = recipe.load().model_copy(update={"batch_rows": 4})
    begins = [[1000 + 100 * session + i for i in range(40)] for session in range(5)]
    rows = [Example(prompt=begin[: 10 * turn], completion=[begin[10 * turn], 2]) for turn in range(1, 4) for begin in begins]
    computed = estimate.count(rows, choices.model_copy(update={"batch_rows": 3}), len(rows)).computed
    assert computed == 5 * 31  # the longest turn, but for its last token: in it are the others


def test_of_many_rows_some_tell_of_all() -> None:
    choices = recipe.load().model_copy(update={"batch_rows": 4})
    rows = [Example(prompt=[*range(50), 200 + n], completion=[2]) for n in range(40)]
    some, whole = estimate.count(rows, choices, 400), estimate.count(rows, choices, 40)
    assert (some.rows, some.computed) == (400, 10 * whole.computed)


def test_validation_rows_are_judged_as_one_tree() -> None:
    rows = [Example(prompt=[*range(50), 200 + n], completion=[2]) for n in range(40)]
    assert estimate.count(rows, recipe.load(), 40, rows).validation == 50 + 40
