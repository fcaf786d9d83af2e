"""What is learned from and judged by: recorded traffic with an answer of one label, in an order that a seed draws."""

import gzip
import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from distill.rows import TrainRow
from tests.bench.train.cases import DATA

VALIDATION = 1000  #: rows of the training split, the last in the drawn order, by which recipes are chosen


@dataclass(frozen=True)
class Set:
    """A set, and at how many training rows students of it are judged."""

    name: str
    file: str
    points: tuple[int, ...]
    theirs: tuple[int, ...]  #: points at which TRL is trained too
    thoroughness: float  #: epochs times the root of the number of rows

    def train(self, count: int | None = None) -> list[TrainRow]:
        """The first rows of the training split: those of a smaller point are among those of a larger one."""
        rows = [as_row(line) for line in lines(self.file, "train")]
        return random.Random(0).sample(rows, len(rows))[:count]

    def validation(self) -> list[TrainRow]:
        """The part of the training split that no recipe on trial learns from. The largest points do, with the recipe chosen."""
        return self.train()[-VALIDATION:]

    def test(self) -> list[TrainRow]:
        """The whole test split."""
        return [as_row(line) for line in lines(self.file, "test")]

    def epochs(self, rows: int) -> int:
        """Fewer rows are learned from more often."""
        return max(1, round(self.thoroughness / math.sqrt(rows)))

    def references(self) -> dict[str, float]:
        """What the test split's labels agree with: the commonest of the training split, people, the teacher asked otherwise."""
        test = lines(self.file, "test")
        ((commonest, _),) = Counter(label(row) for row in self.train()).most_common(1)
        others = {
            "majority_class": [commonest for _ in test],
            "people": [line["meta"]["gold"].get("human_label") for line in test],
            "teacher_with_another_prompt": [line["meta"].get("alt", {}).get("gpt4_exposure_alt_rubric") for line in test],
        }
        return {
            name: round(sum(label(as_row(line)) == other for line, other in zip(test, each, strict=True)) / len(test), 4)
            for name, each in others.items()
            if all(each)
        }


SETS = {
    each.name: each
    for each in (
        Set("banking77", "intent_banking77_gold", (625, 1250, 2500, 5000, 10003), (625, 2500, 10003), thoroughness=140),
        Set("exposure", "label_exposure_gpt4", (625, 1250, 2500, 5000, 15399), (625, 2500, 15399), thoroughness=90),
    )
}


@cache
def lines(file: str, split: str) -> list[dict[str, Any]]:
    """A split's exchanges, as recorded."""
    with gzip.open(DATA / f"{file}.jsonl.gz") as opened:
        return [line for line in map(json.loads, opened) if line["meta"]["split"] == split]


def as_row(line: dict[str, Any]) -> TrainRow:
    return TrainRow(line["request"]["messages"], line["request"].get("tools"), line["response"]["choices"][0]["message"])


def label(row: TrainRow) -> str:
    """The teacher's answer."""
    return str(row.completion["content"]).strip()
