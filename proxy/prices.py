"""What an answer of the teacher cost."""

from collections.abc import Sequence

from store.teachers import Price, matches

_REMEMBERED = 4096  # models; a client may send any text for one
_LONGEST = 256  # characters of a model that is remembered
_MILLION = 1_000_000


class Prices:
    """US dollars by model, as the [[price]] tables of STILLROOM_TEACHERS say; the first that matches counts."""

    def __init__(self, prices: Sequence[Price]) -> None:
        self._prices = tuple(prices)
        self._found: dict[str, Price | None] = {}

    def cost(
        self, model: str, prompt_tokens: int | None, completion_tokens: int | None, cached_tokens: int | None = None
    ) -> float | None:
        """Dollars for one answer; None where the price or a count is not known. `cached_tokens` are some of the prompt's."""
        try:
            price = self._found[model]
        except KeyError:
            price = self._find(model)
        if price is None or prompt_tokens is None or completion_tokens is None:
            return None
        cached = 0 if price.cached_input is None else min(cached_tokens or 0, prompt_tokens)
        dollars = (prompt_tokens - cached) * price.input + completion_tokens * price.output + cached * (price.cached_input or 0.0)
        return dollars / _MILLION

    def _find(self, model: str) -> Price | None:
        price = next((price for price in self._prices if matches(price.models, model)), None)
        if len(model) <= _LONGEST:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[model] = price
        return price
