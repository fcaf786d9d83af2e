"""Successive halving by optuna, kept in memory: what to try next, and whether a trial is among the better half of a rung.

Asynchronous: a trial is compared with those that got to its rung before (Li et al. 2020, arXiv 1810.05934). What it decides
follows from the trials told so far alone, so that a search can be made again from its rows.
"""

from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

Choices = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """What is varied."""

    learning_rate: tuple[float, float]  #: lowest and highest; drawn on a log scale
    epochs: tuple[int, int]
    rank: list[int]
    base_model: list[str]
    strip: list[bool]


class Halving:
    """The trials of one search, in their order. `seed`: of what is drawn, in the first `by_chance` trials knowing nothing."""

    def __init__(self, space: Space, seed: int, by_chance: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._seed, self._by_chance = seed, by_chance
        self._study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2))
        self._space = {
            "learning_rate": FloatDistribution(*space.learning_rate, log=True),
            "epochs": IntDistribution(*space.epochs),
            "rank": CategoricalDistribution(space.rank),
            "base_model": CategoricalDistribution(space.base_model),
            "strip": CategoricalDistribution(space.strip),
        }
        self._trial: optuna.Trial | None = None

    def next(self, choices: Choices | None) -> Choices:
        """Begin a trial with these choices, or with ones that are drawn; returns them."""
        if choices is not None:
            self._study.enqueue_trial(choices)
        # A sampler for each: what it draws depends on the trials before, not on how often the search was made again.
        seed = (self._seed + len(self._study.trials)) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._by_chance)
        self._trial = self._study.ask(self._space)
        drawn: Choices = self._trial.params
        return drawn

    def is_good(self, rung: int, loss: float) -> bool:
        """Note the trial's loss on a rung, counted from 0; whether it is among the better half of those that got there."""
        assert self._trial is not None
        self._trial.report(loss, 2**rung)
        return not self._trial.should_prune()

    def end(self, loss: float | None, *, failed: bool = False) -> None:
        """The trial went all the way and has this loss; or it was stopped, or failed."""
        assert self._trial is not None
        if loss is not None:
            self._study.tell(self._trial, loss)
        else:
            self._study.tell(self._trial, state=TrialState.FAIL if failed else TrialState.PRUNED)
