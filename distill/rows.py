"""Rows to train on or to judge by: lines of a JSONL file, and the tokens that the student is shown of them."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store import prompts
from store.prompts import Transform

if TYPE_CHECKING:
    from distill.render import Example

Message = dict[str, Any]


class BadData(ValueError):
    """Nothing can be learned from the data; the message says why, with the line's number where one line is at fault."""


@dataclass(frozen=True)
class TrainRow:
    """A prompt and the answer to learn."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    completion: Message
    rejected: Message | None = None  #: an answer that is worse
    weight: float = 1.0  #: of the row among others; 2 counts as if it were there twice


@dataclass(frozen=True)
class Item:
    """A row as tokens."""

    row: TrainRow
    chosen: "Example"
    rejected: "Example | None"


def read(path: Path) -> list[TrainRow]:
    """The rows of a JSONL file. Raises BadData with the number of the first line that is none."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # and at nothing else: U+2028 is text
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadData(f"{path}, line {number}: {type(error).__name__}: {error}") from error
    if not rows:
        raise BadData(f"{path} has no rows")
    return rows


def transform(path: Path | None) -> Transform | None:
    """The transform in a JSON file; None without one. Raises BadTransform, OSError."""
    return prompts.read(json.loads(path.read_bytes())) if path is not None else None


def tokenize(
    base: Path, rows: Sequence[TrainRow], transform: Transform | None, *, longest: int | None = None, preferring: bool = False
) -> Iterator[Item]:
    """The rows as tokens of the model folder `base`, in their order. `transform` leaves the student less of the prompts.

    A row that cannot be shown to a student, or has more than `longest` tokens, is left out; so is a rejected answer, and any if not
    `preferring`.
    """
    from transformers import AutoTokenizer

    from distill import render

    tokenizer = AutoTokenizer.from_pretrained(base)
    unusable = render.Unrenderable, prompts.UnseenTemplate, KeyError, TypeError, AttributeError  # the last three: odd shapes
    for row in rows:
        try:
            messages = prompts.apply(transform, row.messages)
            chosen = render.example(tokenizer, messages, row.tools, row.completion)
        except unusable:
            continue
        if longest is not None and len(chosen) > longest:
            continue
        rejected = None
        if preferring and row.rejected is not None:
            with suppress(*unusable):
                rejected = render.example(tokenizer, messages, row.tools, row.rejected)
            if rejected is not None and ((longest is not None and len(rejected) > longest) or rejected == chosen):
                rejected = None
        yield Item(row, chosen, rejected)


def _row(line: Any) -> TrainRow:
    messages, completion = line["messages"], line.get("completion")
    if completion is None:
        *messages, completion = messages
    rejected, weight = line.get("rejected"), line.get("weight", 1.0)
    if rejected is not None and rejected["role"] != "assistant":
        raise ValueError("the rejected answer must be an assistant's message")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError("the weight must be a number above 0")
    if completion["role"] != "assistant" or not all(isinstance(m, dict) and m["role"] for m in messages):
        raise ValueError("the answer must be an assistant's message, and every message needs a role")
    return TrainRow(messages, line.get("tools") or None, completion, rejected, float(weight))
