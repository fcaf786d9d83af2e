"""How often a student answers as its teacher, in a process of its own: `python -m tests.bench.quality.judge JOB.json`.

It is greedy decoding of every row, without decoding token by token: the teacher's answer is put before the student whole, as in
`distill.step.judge`. Where each of its tokens is the likeliest after those before it, and only there, greedy decoding writes that
answer. Elsewhere the first token that is not shows how the student's own answer begins; a label that begins so is put before it
next, until a label is what the student writes, or none begins as its answer does. All prompts begin alike, so a row costs only its
own few tokens. Both adapters are judged alike, unmerged and in bfloat16, as an engine runs them. Prints a line of JSON.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from scipy.stats import binomtest
from transformers import PreTrainedModel

from distill import recipe, step, stripping, student
from distill import rows as data
from distill.render import Example
from tests.bench.quality.sets import SETS, label

TOKEN_BUDGET = 4096
ROUNDS = 16  #: an answer of more tokens than this is none of the labels


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    chosen, base = SETS[job["set"]], Path(job["base"])
    rows = (chosen.test() if job["judged"] == "test" else chosen.validation())[: job.get("most")]
    transform = stripping.learn([row.messages for row in chosen.train(job["rows"])]) if job.get("strip") else None
    items = list(data.tokenize(base, rows, transform))
    assert len(items) == len(rows), "rows that no student can be shown"
    pupil = student.load(base, recipe.load().model_copy(update={**job["recipe"], "dtype": "bfloat16"}))
    if job["adapter"] is not None:
        unknown = set_peft_model_state_dict(pupil.adapter, load_peft_weights(job["adapter"])).unexpected_keys
        assert not unknown, unknown
    examples = [item.chosen for item in items]
    began = time.perf_counter(), time.process_time()
    first = Reading(pupil.model, examples)
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    truth = [label(row) for row in rows]
    labels = {tuple(example.completion): answer for example, answer in zip(examples, truth, strict=True)}
    answers = write(pupil.model, examples, labels, first)
    told = {
        **agreement(truth, answers),
        "loss": round(-sum(first.likelihoods) / sum(len(example.completion) for example in examples), 5),
        "no_label": answers.count(None),
        "ms_a_row": round(1000 * took[0] / len(rows), 1),
        "cpu_ms_a_row": round(1000 * took[1] / len(rows), 1),
        "answers": answers,
    }
    print(json.dumps(told))


class Reading(step._Pass):
    """What a model thinks of the rows' answers, as `step.judge`; and the likeliest token at each of their places."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Example]) -> None:
        super().__init__(model, rows, TOKEN_BUDGET, [0.0] * len(rows))
        self.said: list[list[int]] = [[] for _ in rows]
        with torch.no_grad():
            self.run()

    def _note(self, logs: torch.Tensor, places: Sequence[int], tokens: Sequence[int], rows: Sequence[int]) -> None:
        super()._note(logs, places, tokens, rows)
        for row, token in zip(rows, logs.argmax(-1)[places].tolist(), strict=True):
            self.said[row].append(token)  # places come in their order

    def own(self, row: int) -> list[int]:
        """How the model's own answer begins: as this one, up to and with the first token that differs, or all of it."""
        said = zip(self.rows[row].completion, self.said[row], strict=True)
        differs = next((at for at, (given, token) in enumerate(said) if given != token), len(self.said[row]) - 1)
        return self.said[row][: differs + 1]


def write(
    model: PreTrainedModel, examples: Sequence[Example], labels: dict[tuple[int, ...], str], reading: Reading
) -> list[str | None]:
    """The label that the model, decoding greedily, answers each row with; None: its answer is none of the labels."""
    answers: list[str | None] = [None] * len(examples)
    open_rows = list(range(len(examples)))
    for _ in range(ROUNDS):
        guesses: dict[int, tuple[int, ...]] = {}
        for at, i in enumerate(open_rows):
            begun = tuple(reading.own(at))
            if begun in labels:  # its end is among its tokens
                answers[i] = labels[begun]
            elif like := [each for each in labels if each[: len(begun)] == begun]:
                guesses[i] = like[0]
        if not guesses:
            break
        open_rows = list(guesses)
        reading = Reading(model, [replace(examples[i], completion=list(guess)) for i, guess in guesses.items()])
    return answers


def agreement(truth: Sequence[str], answers: Iterable[str | None]) -> dict[str, Any]:
    """The share of answers that are the teacher's, its 95 % interval (Wilson), and the mean over labels of F1."""
    answers = list(answers)
    right = Counter(label for label, answer in zip(truth, answers, strict=True) if label == answer)
    asked, said = Counter(truth), Counter(answers)
    share = binomtest(right.total(), len(truth)).proportion_ci(method="wilson")
    return {
        "agreement": round(right.total() / len(truth), 4),
        "interval": [round(float(share.low), 4), round(float(share.high), 4)],
        "macro_f1": round(sum(2 * right[label] / (asked[label] + said[label]) for label in asked) / len(asked), 4),
        "judged": len(truth),
    }


if __name__ == "__main__":
    main()
