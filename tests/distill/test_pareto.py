"""The front, the choice, and the plot."""

from dataclasses import replace
from pathlib import Path

from distill import pareto
from distill.pareto import Option

GOOD = Option("0", quality=0.97, bits=0.1, cost=0.10, latency_ms=100, chance=0.9, servable=True)


def named(name: str, **changes: object) -> Option:
    return replace(GOOD, name=name, **changes)  # type: ignore[arg-type]


def test_what_another_beats_in_nothing_is_on_the_front() -> None:
    worse = named("worse", quality=0.96, cost=0.11)
    cheap = named("cheap", quality=0.9, cost=0.02)
    same = named("same")
    assert pareto.front([GOOD, worse, cheap, same]) == [True, False, True, True]


def test_the_cheapest_that_passes_is_the_candidate() -> None:
    best = named("best", quality=0.99, cost=0.3, chance=0.99)
    cheap = named("cheap", quality=0.96, cost=0.02, chance=0.6)
    cheapest = named("cheapest", quality=0.8, cost=0.01, chance=0.0)
    assert pareto.choose([GOOD, best, cheap, cheapest]) == 2


def test_of_those_as_cheap_the_best_is_the_candidate() -> None:
    assert pareto.choose([GOOD, named("better", quality=0.98, cost=0.105)]) == 1


def test_where_none_passes_the_best_is_the_candidate_whatever_it_costs() -> None:
    options = [named("a", chance=0.1), named("b", chance=0.2, quality=0.98, cost=1.0)]
    assert pareto.choose(options) == 1


def test_what_the_engine_cannot_serve_is_never_the_candidate() -> None:
    other = named("other", cost=0.01, servable=False)
    assert pareto.choose([other, GOOD]) == 1
    assert pareto.choose([other]) is None


def test_free_text_is_compared_by_its_loss() -> None:
    dear = named("dear", quality=None, chance=None, bits=0.500, cost=0.2)
    cheap = named("cheap", quality=None, chance=None, bits=0.504, cost=0.1)
    bad = named("bad", quality=None, chance=None, bits=0.6, cost=0.01)
    assert pareto.choose([dear, cheap, bad]) == 1


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    file = tmp_path / "below" / "pareto.png"
    pareto.plot([GOOD, named("1", quality=0.9, cost=0.02)], 0, "search", file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in file.parent.iterdir()] == ["pareto.png"]
    text = [named("0", quality=None, chance=None)]
    pareto.plot(text, None, "search", file)
    assert file.stat().st_size > 1000
