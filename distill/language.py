"""Language: of questions and answers, where a text is long enough to tell, and which answers are in none that a task answers in."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

LETTERS = 80  # at least; a shorter text is in any language
PLAIN = 0.9  # share of letters and spaces, at least: less is code, a list or JSON
SURE = 0.99  # the model's probability, at least
ENOUGH = 50  # answers by which a task's language is clear
CLEAR = 0.95  # of them


def of(text: str) -> str | None:
    """The language of a text as ISO 639-1, such as "de"; None if it is short, no prose, or unclear."""
    plain = sum(c.isalpha() or c.isspace() for c in text)
    if plain < PLAIN * len(text) or sum(c.isalpha() for c in text) < LETTERS:
        return None
    language, probability = _identifier().classify(text[:2000])
    return str(language) if probability >= SURE else None


def key(question: str | None, answer: str) -> str:
    """Under what an answer is counted: "en>de" is a German answer to an English question, "?>de" one to an unclear one."""
    return f"{question or '?'}>{answer}"


def off(counts: Mapping[str, int], question: str | None, answer: str) -> str | None:
    """Why an answer is in a language that the task does not answer in; None if it is, or if that is not clear.

    A task answers in one language, or in that of the question; both where 95 of 100 answers say so.
    """
    total = sum(counts.values())
    if total < ENOUGH:
        return None
    by_answer: dict[str, int] = {}
    same = known = 0
    for each, number in counts.items():
        asked, answered = each.split(">")
        by_answer[answered] = by_answer.get(answered, 0) + number
        known += number if asked != "?" else 0
        same += number if asked == answered else 0
    usual = max(by_answer, key=lambda language: by_answer[language])
    follows = known >= ENOUGH and same >= CLEAR * known
    one = by_answer[usual] >= CLEAR * total
    if (one and answer == usual) or (follows and question in (None, answer)) or not (one or follows):
        return None
    return f"its answer is in another language ({answer}) than the {'task' if one else 'question'}'s ({usual if one else question})"


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """Half a second to load, and only where somebody writes long texts."""
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
