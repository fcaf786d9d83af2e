"""The gate's arithmetic against the tables of its specification, and its decisions in words."""

import numpy as np
import pytest

from distill.gate import Counts, clopper_pearson_upper, decide, tango_z
from store.policy import Policy
from store.states import Outcome

POLICY = Policy()


def counts(n: int, wrong: int, *, b: int = 0, c: int | None = None, hard: int = 0, asked: bool = False) -> Counts:
    c = wrong if c is None else c
    both = n - wrong - b
    return Counts(n, agree=both + b, teacher_agree=both + c, b=b, c=c, stable_n=n, hard_errors=hard, asked_again=asked)


@pytest.mark.parametrize(("n", "allowed"), [(99, 0), (200, 1), (300, 3), (500, 8), (1000, 20)])
def test_as_many_hard_errors_are_allowed_as_the_table_says(n: int, allowed: int) -> None:
    assert clopper_pearson_upper(allowed, n) <= 0.03 < clopper_pearson_upper(allowed + 1, n)


def test_nothing_seen_bounds_nothing() -> None:
    assert clopper_pearson_upper(0, 0) == 1.0


def test_without_noise_the_statistic_is_the_score_test_of_one_proportion() -> None:
    n, c, delta = 400, 7, 0.03
    assert tango_z(n, 0, c, -delta) == pytest.approx((n * delta - c) / np.sqrt(n * delta * (1 - delta)))


@pytest.mark.parametrize(
    ("self_agreement", "n", "delta", "power"),
    [(0.98, 240, 0.03, 0.8), (0.95, 669, 0.03, 0.9), (0.90, 331, 0.05, 0.8), (0.98, 674, 0.02, 0.9)],
)
def test_an_equal_student_passes_at_least_as_often_as_the_table_promises(
    self_agreement: float, n: int, delta: float, power: float
) -> None:
    # t0, t1 and the student each leave the usual answer equally often, and never for the same other one
    draw = np.random.default_rng(0)
    t0, t1, s = (draw.random((2000, n)) < np.sqrt(self_agreement) for _ in range(3))
    a, b = t0 & t1, t0 & s
    passes = [tango_z(n, int(x), int(y), -delta) > 1.645 for x, y in zip((b & ~a).sum(1), (a & ~b).sum(1), strict=True)]
    assert power - 0.02 <= np.mean(passes) <= power + 0.12


def test_at_the_margin_few_pass() -> None:
    draw = np.random.default_rng(1)
    n, p = 500, 0.95
    a, b = draw.random((3000, n)) < p, draw.random((3000, n)) < p - 0.03
    passes = [tango_z(n, int(x), int(y), -0.03) > 1.645 for x, y in zip((b & ~a).sum(1), (a & ~b).sum(1), strict=True)]
    assert np.mean(passes) < 0.06


def test_a_student_as_good_as_its_teacher_passes() -> None:
    decision = decide(counts(400, 6, b=4, c=5, hard=3, asked=True), POLICY)
    assert decision.outcome == Outcome.PASSED
    assert decision.numbers["floor"] == pytest.approx(decision.numbers["self_agreement"] - 0.03)


def test_too_few_rows_are_never_a_pass() -> None:
    decision = decide(counts(299, 0), POLICY)
    assert decision.outcome == Outcome.INSUFFICIENT
    assert "about 1 more" in decision.reason
    assert decide(counts(0, 0), POLICY).outcome == Outcome.INSUFFICIENT


def test_a_noisier_teacher_takes_more_rows_and_a_very_noisy_one_a_wider_margin() -> None:
    assert decide(counts(400, 0, b=20, c=0, asked=True), POLICY).outcome == Outcome.INSUFFICIENT
    noisy = decide(counts(400, 30, b=36, c=30, asked=True), POLICY)
    assert (noisy.numbers["delta"], noisy.numbers["rows_needed"]) == (0.05, 300)


def test_a_worse_student_fails_and_is_told_both_reasons() -> None:
    decision = decide(counts(400, 40, hard=40), POLICY)
    assert decision.outcome == Outcome.FAILED
    assert "z = " in decision.reason
    assert "40 in 400" in decision.reason
    assert "was not asked again" in decision.reason


def test_hard_errors_alone_fail_a_student_that_agrees_as_often_as_the_teacher() -> None:
    decision = decide(counts(1000, 30, b=30, c=30, hard=28, asked=True), POLICY)
    assert decision.numbers["z"] > 1.645
    assert decision.outcome == Outcome.FAILED


def test_a_decision_can_be_taken_again_from_its_numbers() -> None:
    first = decide(counts(400, 6, b=4, c=5, hard=3, asked=True), POLICY)
    kept = {key: first.numbers[key] for key in Counts.__dataclass_fields__}
    assert decide(Counts(**kept), POLICY) == first
