"""What a student is worth and costs, measured on validation rows without an engine; runs alone:

    python -m distill.score --base FOLDER --adapter FOLDER --data validation.jsonl [--transform transform.json]

An answer is exact if the student, decoding greedily, writes the teacher's token for token. Whether it would is seen without
decoding: each of the teacher's tokens must be the likeliest after those before it. Answers that say the same in other words count
as wrong: for labels this is nearly the gate's agreement, for JSON and tool calls a lower bound; of free text it tells nothing.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distill import rows as data
from distill.rows import BadData, TrainRow
from store import prompts
from store.answers import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from distill.render import Example
    from distill.step import Judged

MOST = 500  #: rows that are judged
TOKEN_BUDGET = 4096  #: tokens that are computed together
TIMED = 12  #: of these, as many answers are written token by token, one after the other


@dataclass(frozen=True)
class Score:
    """A student on validation rows."""

    judged: int
    exact: int  #: answers that are the teacher's, token for token
    loss: float  #: nats a token of the answers
    bits: float  #: a character of the answers: comparable between tokenizers
    latency_ms: float  #: median of an answer, alone on this machine, the prompts' common beginning computed before
    answer_seconds: float  #: mean of the same
    prompt_tokens: float  #: mean
    seconds: float  #: that this took


def score(base: Path, adapter: Path, rows: Sequence[TrainRow], transform: prompts.Transform | None = None) -> Score:
    """Judge and time the adapter of the model folder `base`. Raises BadData if no row can be rendered."""
    began = time.perf_counter()
    import torch

    model = _load(base, adapter)
    shown = list(data.tokenize(base, rows[:: max(1, len(rows) // MOST)][:MOST], transform))
    if not shown:
        raise BadData("no validation row can be shown to the student")
    examples = [item.chosen for item in shown]
    judged = _judge(model, examples)
    with torch.no_grad():
        writing = _Writing(model, examples)
        seconds = [writing.time(example) for example in examples[:: max(1, len(examples) // TIMED)][:TIMED]]
    nats = -sum(each.likelihood for each in judged)
    return Score(
        judged=len(judged),
        exact=sum(each.exact for each in judged),
        loss=nats / sum(len(example.completion) for example in examples),
        bits=nats / math.log(2) / sum(max(1, len(text_of(item.row.completion))) for item in shown),
        latency_ms=statistics.median(seconds) * 1000,
        answer_seconds=statistics.fmean(seconds),
        prompt_tokens=statistics.fmean(len(example.prompt) for example in examples),
        seconds=time.perf_counter() - began,
    )


def _judge(model: "PreTrainedModel", examples: "Sequence[Example]") -> "list[Judged]":
    """What all rows begin with alike is computed once, where the model allows it."""
    from distill import attention, step

    usual = model.config._attn_implementation
    if step.can_share(model):
        model.set_attn_implementation(attention.NAME)
    judged = step.judge(model, examples, token_budget=TOKEN_BUDGET)
    model.set_attn_implementation(usual)
    return judged


class _Writing:
    """A model that has read what all prompts begin with, as an engine that caches prefixes has, and writes answers."""

    def __init__(self, model: "PreTrainedModel", examples: "Sequence[Example]") -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        self._model = model
        self._cache = DynamicCache(config=model.config)
        plain = all(type(layer) is DynamicLayer for layer in self._cache.layers)
        self._shared = _shared(examples) if plain else 0
        if self._shared:
            self._next(examples[0].prompt[: self._shared])

    def time(self, example: "Example") -> float:
        """Seconds that writing the answer takes, token by token."""
        from transformers import DynamicCache

        began = time.perf_counter()
        self._next(example.prompt[self._shared :])
        for token in example.completion[:-1]:
            self._next([token])
        taken = time.perf_counter() - began
        if self._shared:
            self._cache.crop(self._shared)
        else:
            self._cache = DynamicCache(config=self._model.config)
        return taken

    def _next(self, ids: list[int]) -> int:
        """The likeliest token after all that was read."""
        import torch

        given = torch.tensor([ids], device=self._model.device)
        said = self._model(input_ids=given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return int(said.logits[0, -1].argmax())


def _shared(examples: "Sequence[Example]") -> int:
    """Tokens that all prompts begin with, leaving one of its own to each."""
    first, last = min(e.prompt for e in examples), max(e.prompt for e in examples)  # these two differ first
    length = min(len(e.prompt) for e in examples) - 1
    return next((i for i in range(length) if first[i] != last[i]), length)


def _load(base: Path, adapter: Path) -> "PreTrainedModel":
    """The student as it will be served: the adapter merged into the base model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from distill import student

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=student.fast_dtype(device))
    merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged.to(device).eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. The result is a line of JSON, and so is the error of exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m distill.score", description="Judge and time an adapter on validation rows.")
    parser.add_argument("--base", type=Path, required=True, help="model folder")
    parser.add_argument("--adapter", type=Path, required=True, help="folder that distill.train wrote")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file")
    parser.add_argument("--transform", type=Path, help="what the student is shown instead of the whole prompt")
    options = parser.parse_args(arguments)
    try:
        transform = data.transform(options.transform)
        found = score(options.base, options.adapter, data.read(options.data), transform)
    except (BadData, prompts.BadTransform, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"result": asdict(found)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
