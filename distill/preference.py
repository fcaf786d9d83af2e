"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), as a weight for each row of a step.

The loss of a pair is -log sigmoid(beta * (margin - margin at the start)), the margin being how much likelier, in nats, the better
answer is than the other. Its gradient is that of the two log-likelihoods, times the same number with opposite signs: so a step of
it is a step of weighted likelihoods. The better answers are learned from as well (Pang et al. 2024, arXiv 2404.19733): else the
likelihoods of both may fade.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.render import Example
from distill.step import judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def margins(model: "PreTrainedModel", pairs: Sequence[tuple[Example, Example]], *, token_budget: int) -> list[float]:
    """By how many nats each pair's first answer is more likely than its second."""
    found = judge(model, [example for pair in pairs for example in pair], token_budget=token_budget)
    return [better.likelihood - worse.likelihood for better, worse in zip(found[::2], found[1::2], strict=True)]


def pulls(now: Sequence[float], before: Sequence[float], beta: float) -> tuple[list[float], float]:
    """What each pair's better answer gets in weight and its other one loses; and the mean loss of the pairs."""
    gains = [beta * (margin - start) for margin, start in zip(now, before, strict=True)]
    loss = sum(_softplus(-gain) for gain in gains) / len(gains)
    return [beta * _sigmoid(-gain) / len(gains) for gain in gains], loss


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
