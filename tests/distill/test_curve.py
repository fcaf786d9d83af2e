"""What a learning curve says of more rows: its intervals cover, its chances are the gate's, and it says when it is not worth it."""

import math

import numpy as np
import pytest

from distill import curve, gate
from distill.curve import Economy, Point, Posterior
from distill.gate import Counts
from store.policy import Policy
from store.states import Outcome

N, JUDGED, WORLDS = 2000, 400, 250


def worlds(seed: int) -> list[tuple[float, float, float]]:
    """True (b, c, e), drawn as the grid expects them."""
    random = np.random.default_rng(seed)
    return [
        (random.uniform(0.05, 1), random.uniform(0, 0.25), math.exp(random.uniform(math.log(0.003), math.log(0.4))))
        for _ in range(WORLDS)
    ]


def true_error(world: tuple[float, float, float], rows: int) -> float:
    b, c, e = world
    return min(1.0, c + e * (rows / N) ** -b)


def covered(wider: float, *, shared: bool, noise: float) -> float:
    """How often the interval at twice the rows has the true error. `shared`: all points are judged by the same rows."""
    random = np.random.default_rng(7)
    hits = 0
    for world in worlds(3):
        one = random.uniform(size=JUDGED)
        points = []
        for share in curve.SHARES:
            p = float(np.clip(true_error(world, round(N * share)) + random.normal(0, noise), 0, 1))
            judged = one if shared else random.uniform(size=JUDGED)
            points.append(Point(round(N * share), int((judged < p).sum()), JUDGED))
        low, _, high = Posterior(points).interval(2 * N, wider)
        hits += low <= true_error(world, 2 * N) <= high
    return hits / WORLDS


def test_where_all_is_as_assumed_80_percent_intervals_cover_80_percent() -> None:
    assert covered(1.0, shared=False, noise=curve.NOISE) == pytest.approx(0.8, abs=0.06)


def test_widened_they_cover_as_much_where_the_points_share_their_rows_and_trainings_are_noisier() -> None:
    assert covered(1.0, shared=True, noise=3 * curve.NOISE) < covered(curve.WIDER, shared=True, noise=3 * curve.NOISE)
    assert 0.78 <= covered(curve.WIDER, shared=True, noise=3 * curve.NOISE) <= 0.95


def test_the_chance_to_pass_is_the_gates() -> None:
    random, policy = np.random.default_rng(1), Policy()
    for n, p in ((500, 0.01), (800, 0.015), (1000, 0.02)):
        passed = 0
        for errors in random.binomial(n, p, size=400):
            counts = Counts(n, n - errors, n, 0, int(errors), n, int(errors), asked_again=False)
            passed += gate.decide(counts, policy).outcome == Outcome.PASSED
        assert float(curve.chance_to_pass(np.array([p]), n, policy)[0]) == pytest.approx(passed / 400, abs=0.08)


def test_with_a_noisy_teacher_the_chance_to_pass_is_nearly_the_gates() -> None:
    random, policy, n, noise = np.random.default_rng(2), Policy(), 1000, 0.05
    for p in (0.04, 0.06, 0.08):  # student and teacher err on their own
        passed = 0
        for _ in range(300):
            a, b = random.uniform(size=n) > noise, random.uniform(size=n) > p
            hard = int(random.binomial(n * (1 - noise), max(0.0, p - noise)))
            counts = Counts(
                n, int(b.sum()), int(a.sum()), int((b & ~a).sum()), int((a & ~b).sum()), int(a.sum()), hard, asked_again=True
            )
            passed += gate.decide(counts, policy).outcome == Outcome.PASSED
        chance = float(curve.chance_to_pass(np.array([p]), n, policy, 1 - noise)[0])
        assert chance == pytest.approx(passed / 300, abs=0.12)


def test_too_few_holdout_rows_never_pass() -> None:
    assert float(curve.chance_to_pass(np.array([0.0]), 299, Policy())[0]) == 0.0
    assert float(curve.chance_to_pass(np.array([0.0]), 300, Policy())[0]) == 1.0


def points(*errors: float, judged: int = 1000) -> list[Point]:
    return [Point(round(N * share), error * judged, judged) for share, error in zip(curve.SHARES, errors, strict=True)]


def test_an_error_that_falls_fast_says_go_on() -> None:
    advice = curve.advise(points(0.064, 0.032, 0.016, 0.008), 800, Policy())
    assert advice.do == "go"
    assert advice.more.rows == N + curve.MORE
    assert advice.more.chance >= curve.GO
    assert f"P(pass at +500 rows) = {advice.more.chance:.0%}" in advice.says


def test_an_error_that_has_a_way_to_go_says_collect_a_doubling() -> None:
    advice = curve.advise(points(0.16, 0.085, 0.045, 0.024), 800, Policy())
    assert advice.do == "collect"
    assert advice.more.chance < curve.GO
    assert advice.double.chance > advice.now.chance
    assert "4,000 rows" in advice.says


def test_a_flat_curve_says_that_more_of_the_same_will_not_do() -> None:
    advice = curve.advise(points(0.21, 0.2, 0.2, 0.2), 800, Policy())
    assert (advice.do, advice.double.chance < 0.01) == ("change", True)
    assert "larger base model" in advice.says
    assert advice.double.low <= advice.double.error <= advice.double.high
    assert advice.double.error == pytest.approx(0.2, abs=0.02)


def test_more_rows_also_mean_more_to_judge_by() -> None:
    """With 200 held-out rows nothing passes; at twice the rows there are 400."""
    advice = curve.advise(points(0.008, 0.004, 0.002, 0.001), 200, Policy())
    assert advice.now.chance == 0
    assert advice.double.chance > 0.9


def economy(**changes: float | None) -> Economy:
    usual = {"requests_a_day": 5000, "teacher_usd": 0.002, "student_usd": 0.0001, "coverage": 0.98, "training_usd": 20}
    return Economy(**{**usual, **changes})  # type: ignore[arg-type]


def test_a_busy_task_pays_for_its_training_within_days() -> None:
    found = curve.break_even(economy())
    assert found.worth_it
    assert found.saved_a_day == pytest.approx(5000 * 0.98 * 0.0019)
    assert found.days == pytest.approx(20 / 9.31, rel=0.01)
    assert "paid for itself in 2 days" in found.says


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"requests_a_day": 5}, "more than 90"),
        ({"student_usd": 0.003}, "no cheaper"),
        ({"requests_a_day": 0}, "nothing is asked"),
        ({"training_usd": 2000}, "more than 90"),
    ],
)
def test_what_will_not_pay_is_told(changes: dict[str, float], why: str) -> None:
    found = curve.break_even(economy(**changes))
    assert found.worth_it is False
    assert found.says.startswith("It is not worth it")
    assert why in found.says


def test_without_the_teachers_price_nothing_is_said_of_worth() -> None:
    assert curve.break_even(economy(teacher_usd=None)).worth_it is None


def test_a_student_judged_by_few_rows_is_less_sure_to_pass_than_one_judged_by_many() -> None:
    few, many = (curve.chance_seen(0, judged, 800, Policy()) for judged in (30, 600))
    assert few < many
    assert many > 0.95
    assert curve.chance_seen(60, 600, 800, Policy()) < 0.01
