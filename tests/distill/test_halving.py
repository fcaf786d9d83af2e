"""Successive halving: what goes on and what stops, and that the same moves are made again from what is known."""

import math
from typing import Any

from distill.halving import Choices, Halving, Space

SPACE = Space(learning_rate=(2e-4, 5e-3), epochs=(1, 4), rank=[4, 8], base_model=["small", "large"], strip=[False])
USUAL: Choices = {"learning_rate": 1e-3, "epochs": 2, "rank": 8, "base_model": "small", "strip": False}
RUNGS = 4


def loss(choices: Choices, rung: int) -> float:
    """Of a world in which 3e-3 is the best rate, and more epochs and rows are better."""
    return abs(math.log(choices["learning_rate"] / 3e-3)) + 0.2 / choices["epochs"] + 1 / 2**rung


def climb(halving: Halving, choices: Choices, first: bool) -> list[float]:
    """The losses of a trial on the rungs that it got to."""
    losses: list[float] = []
    for rung in range(RUNGS):
        losses.append(loss(choices, rung))
        if not halving.is_good(rung, losses[-1]) and not first:
            halving.end(None)
            return losses
    halving.end(losses[-1])
    return losses


def trials(number: int, known: list[Choices] | None = None) -> list[tuple[Choices, list[float]]]:
    halving, known, found = Halving(SPACE, seed=5, by_chance=6), known or [USUAL], []
    for n in range(number):
        choices = halving.next(known[n] if n < len(known) else None)
        found.append((choices, climb(halving, choices, n == 0)))
    return found


def test_the_usual_recipe_is_the_first_and_goes_all_the_way() -> None:
    [(choices, losses)] = trials(1)
    assert choices == USUAL
    assert len(losses) == RUNGS


def test_most_trials_stop_early_and_the_best_that_went_all_the_way_beats_the_usual_recipe() -> None:
    found = trials(20)
    whole = [losses[-1] for _, losses in found if len(losses) == RUNGS]
    assert 2 <= len(whole) <= 10
    assert min(whole) < 0.6 * whole[0]
    assert all(2e-4 <= choices["learning_rate"] <= 5e-3 for choices, _ in found)


def test_a_trial_worse_than_all_that_got_there_stops_on_its_first_rung() -> None:
    halving = Halving(SPACE, seed=1, by_chance=6)
    climb(halving, halving.next(USUAL), first=True)
    bad: dict[str, Any] = {**USUAL, "learning_rate": 2e-4, "epochs": 1}
    assert len(climb(halving, halving.next(bad), first=False)) == 1


def test_a_search_that_is_made_again_from_any_point_makes_the_same_moves() -> None:
    whole = trials(12)
    for known in (1, 4, 11):
        assert trials(12, [choices for choices, _ in whole[:known]]) == whole
