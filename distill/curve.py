"""How much data is enough: what a learning curve says of more rows, and whether it is worth them (DECISIONS, section 6). Pure.

The error at n rows is taken to be err(n) = c + e * (n / N) ** -b. A grid over (b, c, e) is weighed by the measured points; what is
said is said of the whole grid: chances and intervals, never a bare yes or no.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta as beta_distribution
from scipy.stats import binom, norm

from distill import gate
from distill.gate import Counts
from store.policy import Policy
from store.states import Outcome

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  #: of the rows, at which a curve is measured
NOISE = 0.005  #: standard deviation of an error between two trainings that differ in nothing that matters
WIDER = 1.4  #: by which intervals are widened: the points share their validation rows, and the form is only a form
INTERVAL = 0.8
MORE = 500  #: rows
GO, COLLECT = 0.7, 0.2  #: chances of passing
HORIZON_DAYS = 90.0  #: in which a student must have earned what it cost

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A training on `rows` rows: how many of the `judged` answers were not the teacher's."""

    rows: int
    errors: float
    judged: int


@dataclass(frozen=True)
class Outlook:
    """What is to be expected of a training on so many rows."""

    rows: int
    chance: float  #: of passing the gate
    low: float  #: of the error: 80 % interval
    error: float  #: median
    high: float


@dataclass(frozen=True)
class Advice:
    """What to do, and the numbers behind it."""

    do: Literal["go", "collect", "change"]
    now: Outlook
    more: Outlook  #: at MORE rows more
    double: Outlook
    says: str


@dataclass(frozen=True)
class Economy:
    """What a task's traffic costs with and without a student, in USD."""

    requests_a_day: float
    teacher_usd: float | None  #: a request; None: not known
    student_usd: float  #: a request
    coverage: float  #: share of the requests that the student would answer
    training_usd: float  #: until a student serves: what is still to be paid


@dataclass(frozen=True)
class BreakEven:
    worth_it: bool | None  #: None: cannot be said
    saved_a_day: float | None  #: USD
    days: float | None  #: until the training is paid for
    says: str


class Posterior:
    """The grid, weighed by the points. `total` is N: the rows of the largest training."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.total = max(point.rows for point in points)
        weights = np.zeros(len(_grid()[0]))
        for point in points:
            p = self._errors(point.rows)
            variance = p * (1 - p) / point.judged + NOISE**2
            weights -= (point.errors / point.judged - p) ** 2 / (2 * variance) + np.log(variance) / 2
        weights = np.exp(weights - weights.max())
        self.weights: Floats = weights / weights.sum()

    def interval(self, rows: int, wider: float = WIDER) -> tuple[float, float, float]:
        """(low, median, high) of the error at so many rows."""
        errors = self._errors(rows)
        low, median, high = _quantiles(errors, self.weights, (0.5 - INTERVAL / 2, 0.5, 0.5 + INTERVAL / 2))
        return max(0.0, median - wider * (median - low)), median, min(1.0, median + wider * (high - median))

    def chance(self, rows: int, holdout: int, policy: Policy, self_agreement: float = 1.0) -> float:
        """That a student of so many rows passes the gate with a holdout of that size."""
        errors = self._errors(rows)
        (median,) = _quantiles(errors, self.weights, (0.5,))
        spread = np.clip(median + WIDER * (errors - median), 0.0, 1.0)
        return float(self.weights @ chance_to_pass(spread, holdout, policy, self_agreement))

    def _errors(self, rows: int) -> Floats:
        b, c, e = _grid()
        return np.clip(c + e * (rows / self.total) ** -b, 0.0, 1.0)


def advise(points: Sequence[Point], holdout: int, policy: Policy, self_agreement: float = 1.0) -> Advice:
    """What more rows would do. `holdout`: rows that the gate judged, or would have. At least two points of different rows."""
    posterior = Posterior(points)
    total = posterior.total

    def outlook(rows: int) -> Outlook:
        held_out = min(policy.holdout_max, round(holdout * rows / total))
        low, error, high = posterior.interval(rows)
        return Outlook(rows, posterior.chance(rows, held_out, policy, self_agreement), low, error, high)

    now, more, double = outlook(total), outlook(total + MORE), outlook(2 * total)
    says = f"{_told(more, f'at +{MORE} rows')}, {_told(double, 'at twice the rows')}. "
    if more.chance >= GO:
        return Advice("go", now, more, double, f"{says}Go on: {MORE} more rows should do.")
    if double.chance >= COLLECT:
        return Advice("collect", now, more, double, f"{says}Collect a doubling, to {double.rows:,} rows, and train again.")
    says += "More of the same will hardly do: take a larger base model, relabel, or let the student answer only what it is sure of."
    return Advice("change", now, more, double, says)


def break_even(economy: Economy) -> BreakEven:
    """When the student has earned its training, by the task's own volume and prices; and when it never will."""
    if economy.teacher_usd is None:
        return BreakEven(None, None, None, "What the teacher costs is not known, so whether it is worth it cannot be said.")
    saved = economy.requests_a_day * economy.coverage * (economy.teacher_usd - economy.student_usd)
    volume = f"{economy.requests_a_day:,.0f} requests a day at ${economy.teacher_usd:.2g} each"
    if saved <= 0:
        why = "the student is no cheaper" if economy.requests_a_day else "nothing is asked"
        return BreakEven(False, saved, None, f"It is not worth it: with {volume}, {why}.")
    days = economy.training_usd / saved
    says = f"with {volume}, of which the student would answer {economy.coverage:.0%}, it saves ${saved:.2f} a day"
    paid = "and costs nothing more" if days == 0 else f"and has paid for itself in {_days(days)}"
    if days > HORIZON_DAYS:
        return BreakEven(False, saved, days, f"It is not worth it: {says} {paid}, more than {HORIZON_DAYS:.0f}.")
    return BreakEven(True, saved, days, f"It is worth it: {says} {paid}.")


def chance_to_pass(errors: Floats, holdout: int, policy: Policy, self_agreement: float = 1.0) -> Floats:
    """That students with these true errors pass `gate.decide`, elementwise.

    Exact where the teacher is taken to agree with itself always. Else by the normal approximation, the student's and the teacher's
    disagreements taken to be independent, and what the student errs beyond the teacher's noise taken to be hard errors.
    """
    if self_agreement >= 1:
        allowed = _allowed(holdout, policy)
        return np.asarray(binom.cdf(allowed, holdout, errors)) if allowed >= 0 else np.zeros_like(errors)
    noise = 1 - self_agreement
    delta = policy.delta_noisy if self_agreement < gate.NOISY else policy.delta
    if holdout < (gate.ROWS_EASY if delta >= 0.05 or self_agreement >= gate.QUIET else gate.ROWS):
        return np.zeros_like(errors)
    b, c = holdout * noise * (1 - errors), holdout * self_agreement * errors
    z = np.array([gate.tango_z(holdout, x, y, -delta) for x, y in zip(b, c, strict=True)])
    stable = round(holdout * self_agreement)
    allowed = _failures_allowed(stable, policy.hard_error_max)
    hard = binom.cdf(allowed, stable, np.clip(errors - noise, 0.0, 1.0)) if allowed >= 0 else np.zeros_like(errors)
    return np.asarray(np.minimum(norm.cdf(z - gate.Z_NEEDED), hard))


def chance_seen(errors: float, judged: int, holdout: int, policy: Policy, self_agreement: float = 1.0) -> float:
    """That a student with so many errors in the `judged` validation rows passes the gate (Jeffreys' prior on its true error)."""
    quantiles = (np.arange(200) + 0.5) / 200
    true = np.asarray(beta_distribution.ppf(quantiles, errors + 0.5, judged - errors + 0.5))
    return float(chance_to_pass(true, holdout, policy, self_agreement).mean())


@lru_cache(maxsize=1)
def _grid() -> tuple[Floats, Floats, Floats]:
    """b, c and e of each cell, each equally likely before anything is measured."""
    axes = np.linspace(0.05, 1, 20), np.linspace(0, 0.25, 51), np.geomspace(0.003, 0.4, 40)
    b, c, e = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    return b, c, e


def _quantiles(values: Floats, weights: Floats, at: Sequence[float]) -> list[float]:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) - weights[order] / 2
    return [float(np.interp(q, reached, values[order])) for q in at]


def _allowed(n: int, policy: Policy) -> int:
    """The most disagreements in n rows with which the gate passes a student, if the teacher always agrees with itself; -1: none."""

    def passes(errors: int) -> bool:
        counts: dict[str, Any] = {"b": 0, "c": errors, "stable_n": n, "hard_errors": errors, "asked_again": False}
        return gate.decide(Counts(n=n, agree=n - errors, teacher_agree=n, **counts), policy).outcome == Outcome.PASSED

    low, high = -1, n  # passes at low (or nothing does), does not at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def _failures_allowed(n: int, most: float) -> int:
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if gate.clopper_pearson_upper(middle, n) <= most else (low, middle)
    return low


def _told(outlook: Outlook, when: str) -> str:
    return (
        f"P(pass {when}) = {outlook.chance:.0%}, with an error of {outlook.error:.1%} "
        f"(80 % interval {outlook.low:.1%} to {outlook.high:.1%})"
    )


def _days(days: float) -> str:
    return "less than a day" if days < 1 else f"{days:.0f} days"
