"""Quality against cost and latency: which students no other beats, which is to be the candidate. Pure, but for the plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LIKELY = 0.5  #: a chance of passing the gate from which a student counts as one that passes
ALIKE = 0.1  #: costs that differ by less than this share are measured no better
ALIKE_BITS = 0.01  #: likewise for the loss of free text


@dataclass(frozen=True)
class Option:
    """A trained student as it was measured on the validation rows."""

    name: str
    quality: float | None  #: share of exact answers; None for free text, which this cannot compare
    bits: float  #: a character of the answers, of loss
    cost: float  #: seconds of this machine an answer
    latency_ms: float
    chance: float | None  #: of passing the gate; None for free text
    servable: bool  #: the engine has its base model


def front(options: Sequence[Option]) -> list[bool]:
    """Of each option, whether no other is as good in quality, cost and latency, and better in one."""
    return [not any(_beats(other, option) for other in options) for option in options]


def choose(options: Sequence[Option]) -> int | None:
    """The candidate's place: the cheapest that passes, of those as cheap the best; the best where none passes.

    None if the engine can serve none.
    """
    places = [i for i, option in enumerate(options) if option.servable]
    passing = [i for i in places if _passes(options[i], options)]
    if not passing:
        return max(places, key=lambda i: _merit(options[i]), default=None)
    cheapest = min(options[i].cost for i in passing)
    return max((i for i in passing if options[i].cost <= cheapest * (1 + ALIKE)), key=lambda i: _merit(options[i]))


def plot(options: Sequence[Option], chosen: int | None, title: str, file: Path) -> None:
    """A PNG: cost against quality (for free text, against the loss), latency as colour, the front joined, the candidate ringed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    text = any(option.quality is None for option in options)
    heights = [option.bits if text else 100 * (option.quality or 0.0) for option in options]
    costs = [1000 * option.cost for option in options]
    dots = axes.scatter(costs, heights, c=[option.latency_ms for option in options], cmap="viridis", s=45, zorder=3)
    figure.colorbar(dots, ax=axes, label="latency of an answer, ms")
    for x, y, option in zip(costs, heights, options, strict=True):
        axes.annotate(option.name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    best = sorted((x, y) for x, y, on in zip(costs, heights, front(options), strict=True) if on)
    axes.plot([x for x, _ in best], [y for _, y in best], color="grey", linewidth=1, zorder=2)
    if chosen is not None:
        axes.scatter([costs[chosen]], [heights[chosen]], s=160, facecolors="none", edgecolors="crimson", zorder=4)
    axes.set_xlabel("cost of 1,000 answers, seconds of this machine")
    axes.set_ylabel("loss, bits a character" if text else "exact answers on the validation rows, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(file)


def _beats(one: Option, other: Option) -> bool:
    better, worse = _axes(one), _axes(other)
    return all(x >= y for x, y in zip(better, worse, strict=True)) and better != worse


def _axes(option: Option) -> tuple[float, float, float]:
    """More is better."""
    return (-option.bits if option.quality is None else option.quality), -option.cost, -option.latency_ms


def _merit(option: Option) -> tuple[float, float]:
    return (0.0 if option.quality is None else option.quality), -option.bits


def _passes(option: Option, options: Sequence[Option]) -> bool:
    if option.chance is not None:
        return option.chance >= LIKELY
    return option.bits <= min(other.bits for other in options) * (1 + ALIKE_BITS)
