"""Prompts as applications make them: templates with dates, names, retrieved passages, shuffled examples filled in; and how well
somebody told their tasks apart.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from math import comb
from typing import Any

NAMES = (
    "Alice Moreau", "Bob Tran", "Chiara Rossi", "Deniz Kaya", "Emil Novak", "Fatima Zahra", "Goran Petrov", "Hana Sato",
    "Ivan Horvat", "Jane O'Neil", "Kofi Mensah", "Lena Fischer", "Mateo Cruz", "Nadia Haddad", "Olu Adeyemi", "Priya Nair",
)  # fmt: skip
_WORDS = (
    "the", "a", "of", "to", "in", "for", "with", "on", "by", "from", "customer", "order", "delivery", "invoice",
    "policy", "product", "refund", "account", "warranty", "shipment", "branch", "review", "engine", "valve", "pressure",
    "report", "quarter", "revenue", "margin", "segment", "contract", "clause", "party", "liability", "notice", "river",
    "station", "signal", "orbit", "vaccine", "dose", "trial", "patient", "cohort", "outcome", "window", "border",
    "museum", "painter", "harbour", "bridge", "festival", "winter", "summer", "archive", "record", "keyboard",
    "monitor", "driver", "update", "package", "server", "cluster", "latency", "request", "token", "cache", "index",
    "shard", "replica", "backup", "restore", "volume",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def sentence(draw: random.Random, least: int = 8, most: int = 18) -> str:
    words = [draw.choice(_WORDS) for _ in range(draw.randint(least, most))]
    return " ".join(words).capitalize() + "."


def passage(draw: random.Random) -> str:
    return " ".join(sentence(draw) for _ in range(draw.randint(2, 5)))


def date(draw: random.Random) -> str:
    year, month, day = draw.randint(2024, 2026), draw.randint(1, 12), draw.randint(1, 28)
    return draw.choice((f"{year}-{month:02}-{day:02}", f"{day} {_MONTHS[month - 1]} {year}", f"{_MONTHS[month - 1]} {day}, {year}"))


def _support(draw: random.Random, world: "World") -> str:
    return (
        f"You are the support assistant of Northwind. Today is {date(draw)}. You are talking to {draw.choice(NAMES)}.\n"
        "Be polite, never promise a refund, and end with one question."
    )


def _triage(draw: random.Random, world: "World") -> str:
    return (
        f"Current time: {date(draw)} {draw.randint(0, 23):02}:{draw.randint(0, 59):02} UTC\n"
        "Classify the ticket that follows as billing, delivery, product or other. Answer with the label alone."
    )


def _answer_from(draw: random.Random, world: "World") -> str:
    chosen = draw.sample(world.passages, draw.randint(1, 20))
    shown = "\n\n".join(f"[{number}] {each}" for number, each in enumerate(chosen, 1))
    return (
        "Answer the question using only the passages below. Cite passages by their number in brackets.\n\n"
        f"{shown}\n\nIf the passages do not contain the answer, say that you do not know."
    )


def _summarise_from(draw: random.Random, world: "World") -> str:
    chosen = draw.sample(world.passages, draw.randint(1, 20))
    shown = "\n---\n".join(chosen)
    head = f"Context for {draw.choice(NAMES)}, retrieved on {date(draw)}:"
    return f"{head}\n---\n{shown}\n---\nWrite a summary of what is asked in five bullet points."


def _sentiment(draw: random.Random, world: "World") -> str:
    shots = draw.sample(world.reviews, draw.randint(3, 6))
    shown = "\n".join(f"Review: {text}\nSentiment: {label}" for text, label in shots)
    return f"Decide whether a review is positive, negative or neutral. Examples:\n{shown}\nNow decide the next one, in one word."


def _entities(draw: random.Random, world: "World") -> str:
    shots = draw.sample(world.entities, len(world.entities))
    shown = "\n".join(f"Text: {text}\nJSON: {found}" for text, found in shots)
    return f"Extract people and places as JSON with the keys people and places.\n\n{shown}"


def _named_first(draw: random.Random, world: "World") -> str:
    return f"{draw.choice(NAMES)}'s writing coach: correct grammar and spelling of the text, keep its tone, return nothing else."


def _english(draw: random.Random, world: "World") -> str:
    return (
        f"You are the help desk of Contoso. Today is {date(draw)}. The user is {draw.choice(NAMES)}.\n"
        "Look the question up in the manual before you answer. Answer in at most two sentences.\nNever mention competitors."
    )


def _steps(draw: random.Random, world: "World") -> str:
    """As the one before, but for one sentence."""
    return (
        f"You are the help desk of Contoso. Today is {date(draw)}. The user is {draw.choice(NAMES)}.\n"
        "Look the question up in the manual before you answer. Answer with a numbered list of steps.\nNever mention competitors."
    )


def _with_sources(draw: random.Random, world: "World") -> str:
    """As `_answer_from`, but for its last sentence."""
    return _answer_from(draw, world).replace("say that you do not know", "answer from what you know yourself, and say so")


def _fixed(draw: random.Random, world: "World") -> str:
    return "Translate the text into formal French."


SYSTEMS = {
    each.__name__.strip("_"): each
    for each in (
        _support, _triage, _answer_from, _summarise_from, _sentiment, _entities,
        _named_first, _english, _steps, _with_sources, _fixed,
    )
}  # fmt: skip

#: Pairs of tasks that differ in one sentence, or in its end.
ALIKE = ("english", "steps", "answer_from", "with_sources")


def _review_prompt(draw: random.Random, world: "World") -> str:
    return f"Rate the following product review from 1 to 5 stars.\n\nReview: {passage(draw)}\n\nStars:"


def _headline_prompt(draw: random.Random, world: "World") -> str:
    return f"Write a headline of at most eight words for this article:\n\n{passage(draw)}\n\nHeadline:"


def _question_prompt(draw: random.Random, world: "World") -> str:
    chosen = "\n".join(draw.sample(world.passages, draw.randint(1, 8)))
    return f"Use the context to answer.\n\nContext:\n{chosen}\n\nQuestion: {sentence(draw)}\nShort answer:"


QUESTIONS = {each.__name__.strip("_"): each for each in (_review_prompt, _headline_prompt, _question_prompt)}


class World:
    """What the templates are filled with."""

    def __init__(self, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.passages = [passage(draw) for _ in range(60)]
        self.reviews = [(sentence(draw), draw.choice(("positive", "negative", "neutral"))) for _ in range(12)]
        self.entities = [(sentence(draw), f'{{"people": ["{name}"], "places": []}}') for name in NAMES[:5]]


def requests(tasks: Sequence[str], each: int, seed: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """(task, chat request), interleaved."""
    draw, world = random.Random(seed), World(seed)
    order = [task for task in tasks for _ in range(each)]
    draw.shuffle(order)
    for task in order:
        if task in SYSTEMS:
            messages = [{"role": "system", "content": SYSTEMS[task](draw, world)}, {"role": "user", "content": sentence(draw)}]
        else:
            messages = [{"role": "user", "content": QUESTIONS[task](draw, world)}]
        yield task, {"model": "big", "messages": messages}


def adjusted_rand(truth: Sequence[str], found: Sequence[str]) -> float:
    """Hubert and Arabie's adjusted Rand index (1985): 1 for the same groups, about 0 for groups by chance."""
    together = sum(comb(number, 2) for number in Counter(zip(truth, found, strict=True)).values())
    rows, columns = (sum(comb(number, 2) for number in Counter(labels).values()) for labels in (truth, found))
    chance = rows * columns / comb(len(truth), 2)
    most = (rows + columns) / 2
    return 1.0 if most == chance else (together - chance) / (most - chance)
