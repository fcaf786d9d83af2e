"""How many rows one user may contribute."""

import random

import pytest

from distill import caps


def kept(users: dict[str, int], others: list[int], share: float = 0.01, at_least: int = 300) -> dict[str, int]:
    limits = caps.limits(users, others, share, at_least)
    return {user: min(rows, limits.get(user, rows)) for user, rows in users.items()}


@pytest.mark.parametrize("honest", [[1] * 1000, [20] * 50, [5] * 200, list(range(1, 41)) * 3, [1] * 400 + [3] * 100 + [9] * 40])
@pytest.mark.parametrize("poisoners", [1, 3])
def test_who_sends_ten_thousand_rows_owns_a_hundredth_at_most(honest: list[int], poisoners: int) -> None:
    users = {f"u{n}": rows for n, rows in enumerate(honest)} | {f"p{n}": 10_000 for n in range(poisoners)}
    left = kept(users, [])
    total = sum(left.values())
    assert max(left[f"p{n}"] for n in range(poisoners)) <= 0.01 * total
    assert total >= 0.85 * sum(honest)


def test_who_is_not_known_is_not_capped_and_counts_as_many() -> None:
    assert kept({}, [500, 3]) == {}
    left = kept({"p": 10_000}, [1] * 1000)
    assert left["p"] == 10


def test_a_small_team_with_one_who_works_keeps_enough_to_train_on() -> None:
    assert kept({"a": 100, "b": 90, "c": 120}, []) == {"a": 100, "b": 90, "c": 120}
    assert kept({"only": 5000}, []) == {"only": 5000}
    assert kept({"a": 20, "b": 20, "c": 20, "d": 20, "e": 500}, [])["e"] == 220  # 300 in all
    assert kept({"a": 200, "b": 200, "c": 200, "d": 200, "e": 10_000}, [])["e"] == 200  # as one of them


def test_a_share_of_one_caps_nobody() -> None:
    assert kept({"p": 10_000, **{f"u{n}": 1 for n in range(100)}}, [], share=1.0)["p"] == 10_000


def test_no_limit_is_below_nothing_and_none_above_what_there_is() -> None:
    rng = random.Random(0)
    for _ in range(300):
        users = {f"u{n}": int(rng.paretovariate(0.8)) for n in range(rng.randint(1, 300))}
        limits = caps.limits(users, [1] * rng.randint(0, 50), rng.choice([0.01, 0.05, 0.5]), 300)
        assert all(0 <= limit < users[user] for user, limit in limits.items())
