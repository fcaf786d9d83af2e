"""What is trained on: recorded traffic, as tokens that both sides are given."""

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill import render

DATA = Path(os.environ.get("STILLROOM_DATA", Path(__file__).parents[4] / "shared" / "data"))


@dataclass(frozen=True)
class Case:
    """A set of rows and how many of them a step takes."""

    name: str
    file: str
    batch: int
    longest: int = 4096  #: tokens; rows beyond are left out

    def rows(self, tokenizer: PreTrainedTokenizerBase, split: str, count: int) -> list[render.Example]:
        """The first rows of a split, as they came: sessions stay together."""
        found: list[render.Example] = []
        for number, row in enumerate(self._read(split)):
            messages = [dict(message) for message in row["request"]["messages"]]
            if self.name == "plain":  # a number in front: no two prompts begin alike
                messages[0]["content"] = f"{number}. {messages[0]['content']}"
            try:
                answer = row["response"]["choices"][0]["message"]
                example = render.example(tokenizer, messages, row["request"].get("tools"), answer)
            except render.Unrenderable:
                continue
            if len(example) <= self.longest:
                found.append(example)
            if len(found) == count:
                break
        return found

    def _read(self, split: str) -> Iterator[dict[str, Any]]:
        with gzip.open(DATA / f"{self.file}.jsonl.gz") as lines:
            for line in lines:
                row = json.loads(line)
                if row["meta"]["split"] == split:
                    yield row


CASES = (
    Case("banking77", "intent_banking77_gold", batch=32),
    Case("exposure", "label_exposure_gpt4", batch=32),
    Case("tau", "tools_tau_airline_gpt4o", batch=16),
    Case("plain", "intent_banking77_gold", batch=8),
)
