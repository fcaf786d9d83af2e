import pytest

from proxy.prices import Prices
from store.teachers import Price

PRICES = Prices(
    [
        Price(models=("gpt-4o-mini*",), input=0.15, output=0.60, cached_input=0.075),
        Price(models=("gpt-*",), input=2.5, output=10),
    ]
)


def test_an_answer_costs_its_tokens_at_the_first_price_that_matches():
    assert PRICES.cost("gpt-4o-mini-2024", 1_000_000, 500_000) == pytest.approx(0.45)
    assert PRICES.cost("gpt-4o", 1000, 100) == pytest.approx(0.0035)
    assert PRICES.cost("gpt-4o", 0, 0) == 0


def test_cached_tokens_have_their_own_price_where_there_is_one():
    assert PRICES.cost("gpt-4o-mini", 1_000_000, 0, 400_000) == pytest.approx(0.12)
    assert PRICES.cost("gpt-4o-mini", 1_000_000, 0, 9_000_000) == pytest.approx(0.075)
    assert PRICES.cost("gpt-4o", 1_000_000, 0, 400_000) == pytest.approx(2.5)


def test_what_is_not_known_costs_none_rather_than_nothing():
    assert PRICES.cost("claude", 1, 1) is None
    assert PRICES.cost("gpt-4o", None, 1) is None
    assert PRICES.cost("gpt-4o", 1, None) is None
    assert Prices([]).cost("gpt-4o", 1, 1) is None


def test_any_number_of_models_is_remembered_in_bounded_memory():
    prices = Prices([Price(models=("*",), input=1, output=1)])
    for number in range(20_000):
        assert prices.cost(f"m-{number}", 1_000_000, 0) == 1
    prices.cost("x" * 100_000, 1, 1)
    assert len(prices._found) <= 4096
    assert max(map(len, prices._found)) < 300
