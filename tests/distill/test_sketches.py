"""What varies in prompts, and finding what is near."""

import random

import numpy as np
import pytest

from distill import sketches
from distill.sketches import Index, Template

_ANY = random.Random(0)
WORDS = ["".join(_ANY.choices("aaabcdeeefghiiijklmnooopqrstuuvwxyz", k=_ANY.randint(2, 9))) for _ in range(4000)]


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def jaccard(one: str, other: str) -> float:
    """Exact, of their shingles."""
    a, b = (set(sketches.shingles(text).tolist()) for text in (one, other))
    return len(a & b) / len(a | b)


def test_case_and_width_of_spaces_make_no_difference_and_each_end_counts_as_much_as_the_middle() -> None:
    assert np.array_equal(sketches.shingles("The  Quick\nfox"), sketches.shingles("the quick fox "))
    assert jaccard("conversation 123", "conversation 124") == jaccard("conversation 123", "convers-tion 123")
    assert sketches.shingles("").size  # even of nothing there is a set


def test_what_prompts_share_is_cut_wherever_it_is() -> None:
    rng = random.Random(1)
    examples = [prose(rng, 30) for _ in range(5)]

    def prompt(question: str) -> str:
        return "\n".join(["You classify questions.", *rng.sample(examples, 5), f"Question: {question}", "Answer with one word."])

    asked = [prose(rng, 12) for _ in range(100)]
    template = sketches.learn([sketches.shingles(prompt(each)) for each in asked], None)
    for question in asked:
        own = sketches.varying(sketches.shingles(prompt(question)), template)
        alone = np.unique(sketches.shingles(question))
        assert len(np.setdiff1d(alone, own)) <= 0.2 * len(alone)  # what reaches over its ends, or is in the examples as well
        assert len(own) <= 1.5 * len(alone)


def test_a_block_that_a_tenth_of_the_prompts_share_is_cut_and_a_phrase_is_not() -> None:
    rng = random.Random(2)
    customers = [prose(rng, 60) for _ in range(5)]
    asked = [f"how do I {prose(rng, 10)}" for _ in range(300)]
    prompts = [sketches.shingles(f"{customers[n % 5]}\n{question}") for n, question in enumerate(asked)]
    template = sketches.learn(prompts, None)
    assert all(len(sketches.varying(prompt, template)) < 120 for prompt in prompts)
    phrases = [sketches.shingles(f"{'can I ' if n % 5 else 'where do I '}{prose(rng, 12)}") for n in range(300)]
    known = sketches.learn(phrases, None)
    assert known is not None
    assert known.many.sum() > known.most.sum()
    kept = sum(len(sketches.varying(phrase, known)) for phrase in phrases) / sum(len(np.unique(phrase)) for phrase in phrases)
    assert kept > 0.9


def test_from_a_few_prompts_nothing_is_learned_and_a_near_duplicate_is_not_taken_for_a_template() -> None:
    few = [sketches.shingles(f"the very same words but for one letter at the end: {letter}") for letter in "abcdefghij"]
    assert sketches.learn(few, None) is None


def test_prompts_in_which_nothing_varies_are_near_only_to_equal_ones() -> None:
    rng = random.Random(3)
    parts = [prose(rng, 40) for _ in range(2)]
    prompts = [sketches.shingles(f"{parts[0]} {parts[1]}")] * 30 + [sketches.shingles(parts[0])] * 30
    template = sketches.learn(prompts, None)
    both, one = (sketches.sketch([sketches.varying(each, template)])[0] for each in (prompts[0], prompts[-1]))
    index = Index()
    index.add(both)
    assert index.near(both) == {0: 1.0}
    assert index.near(one) == {}


def test_a_template_reads_as_it_was_written_and_forgets_nothing() -> None:
    rng = random.Random(4)
    first, second = (prose(rng, 50) for _ in range(2))
    template = sketches.learn([sketches.shingles(f"{first} {n} {prose(rng, 5)}") for n in range(50)], None)
    assert template is not None
    read = Template.read(*template.packed())
    assert read is not None
    assert np.array_equal(read.most, template.most)
    later = sketches.learn([sketches.shingles(f"{second} {n} {prose(rng, 5)}") for n in range(50)], read)
    assert all(len(sketches.varying(sketches.shingles(text), later)) < 5 for text in (first, second))
    assert Template.read(b"", b"") is None


@pytest.mark.parametrize("words", [10, 60, 400])
def test_what_is_near_is_found_among_many_and_little_else(words: int) -> None:
    rng = random.Random(words)
    texts = [prose(rng, words) for _ in range(600)]
    index = Index(sketches.sketch([sketches.varying(sketches.shingles(text), None) for text in texts[:300]]))
    for text in texts[300:]:
        index.add(sketches.sketch([sketches.varying(sketches.shingles(text), None)])[0])
    missed = near = false = 0
    for number, text in enumerate(texts):
        edited = text
        for at in rng.sample(range(len(text)), k=max(1, len(text) // 45)):  # nearly as many as a near-duplicate may have
            edited = edited[:at] + rng.choice("xyz") + edited[at + rng.randrange(2) :]
        if jaccard(text, edited) < 0.8:
            continue
        near += 1
        found = index.near(sketches.sketch([sketches.varying(sketches.shingles(edited), None)])[0])
        missed += found.get(number, 0) < sketches.NEAR
        false += sum(jaccard(texts[other], edited) < 0.4 for other in found)
    assert near > 300
    assert (missed, false) == (0, 0)
