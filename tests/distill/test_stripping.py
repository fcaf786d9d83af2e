"""What all prompts of a task begin with, learned from them."""

import random
from typing import Any

import orjson
import pytest

from distill import stripping
from store.policy import Policy
from store.prompts import Piece, apply

RULES = "You sort letters into departments. Answer with one word, the department, in lower case. Never explain your answer.\n"
NOTES = "\nMind the postcode: letters from abroad have none.\nWhat is illegible goes to support.\n"
WORDS = ["alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ivy", "juniper"]


def words(rng: random.Random, most: int = 12) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def prompt(system: str, *turns: str) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * len(turns)
    return [{"role": "system", "content": system}, *({"role": r, "content": t} for r, t in zip(roles, turns, strict=False))]


def test_a_fixed_system_message_is_learned_whole() -> None:
    rng = random.Random(1)
    prompts = [prompt(RULES, words(rng)) for _ in range(50)]
    transform = stripping.learn(prompts)
    assert transform is not None
    assert transform.head == (Piece("system", (RULES,)),)
    assert apply(transform, prompts[0]) == prompts[0][1:]
    assert stripping.saved(transform) == len(RULES)


def test_dates_names_and_passages_stay_and_what_is_between_them_goes() -> None:
    rng = random.Random(2)

    def one(n: int) -> list[dict[str, Any]]:
        passages = "".join(f"- {words(rng)}\n" for _ in range(rng.randint(1, 20)))
        today = f"2026-{n % 12 + 1:02}-{n % 28 + 1:02}"
        return prompt(f"{RULES}Today is {today}.\n{passages}{NOTES}Sign as {words(rng, 2)}", words(rng))

    prompts = [one(n) for n in range(200)]
    transform = stripping.learn(prompts)
    assert transform is not None
    (piece,) = transform.head
    assert piece.fixed[0].startswith(RULES)
    assert any(NOTES.strip() in text for text in piece.fixed[1:])
    for _ in range(100):
        fresh = one(rng.randrange(10_000))
        shown = apply(transform, fresh)[0]["content"]
        said = fresh[0]["content"].split("Today is ")[1].split(".")[0]
        assert said in shown
        assert "Never explain" not in shown
        for line in fresh[0]["content"].splitlines():
            assert line in shown or any(line in text for text in piece.fixed) or line.startswith(("Today", "Sign"))


def test_a_template_around_the_question_is_learned_where_there_is_no_system_message() -> None:
    rng = random.Random(3)
    prompts = [[{"role": "user", "content": f"{RULES}Letter: {words(rng)}\n{NOTES}"}] for _ in range(60)]
    transform = stripping.learn(prompts)
    assert transform is not None
    assert apply(transform, prompts[0])[0]["content"] in prompts[0][0]["content"]
    assert "explain" not in apply(transform, prompts[0])[0]["content"]


def test_examples_that_are_always_given_go_with_the_rules() -> None:
    rng = random.Random(4)
    prompts = [prompt(RULES, "an invoice", "billing", "a broken lamp", "support", words(rng)) for _ in range(40)]
    transform = stripping.learn(prompts)
    assert transform is not None
    assert len(transform.head) == 5
    assert apply(transform, prompts[0]) == prompts[0][-1:]


def test_no_word_number_or_date_is_cut_in_two() -> None:
    prompts = [[{"role": "user", "content": f"{RULES}Date: 2026-11-{n:02}T10:00 {'x' * n}"}] for n in range(10, 29)]
    transform = stripping.learn(prompts)
    assert transform is not None
    assert apply(transform, prompts[0])[0]["content"].startswith("2026-11-10T10:00")


def test_a_date_that_stays_for_a_day_is_not_taken_for_fixed() -> None:
    rng = random.Random(5)
    prompts = [prompt(f"{RULES}Today is day {n // 400}.", words(rng)) for n in range(4000)]
    transform = stripping.learn(prompts)
    assert transform is not None
    assert apply(transform, prompt(f"{RULES}Today is day 11.", "x"))[0]["content"].endswith("11.")


@pytest.mark.parametrize(
    "prompts",
    [
        [],
        [prompt("Be brief.", word) for word in WORDS],  # too little
        [prompt(RULES + word * 30, word) for word in ("a", "b")] + [prompt(word * 40, word) for word in WORDS],  # too few have it
        [[{"role": "user", "content": RULES}] for _ in range(30)],  # nothing varies: nothing would be left
        [[{"role": "user", "content": [{"type": "text", "text": RULES + word}]}] for word in WORDS],  # several parts
        [[{"role": "system", "content": RULES, "name": word}, {"role": "user", "content": word}] for word in WORDS],
    ],
)
def test_where_there_is_nothing_to_rely_on_nothing_is_stripped(prompts: list[list[dict[str, Any]]]) -> None:
    assert stripping.learn(prompts) is None


def test_a_few_other_prompts_do_no_harm_and_are_not_covered() -> None:
    rng = random.Random(6)
    strange = [[{"role": "user", "content": words(rng)}] for _ in range(4)]
    prompts = [*(prompt(RULES, words(rng)) for _ in range(60)), *strange, *(prompt(RULES, words(rng)) for _ in range(60))]
    transform = stripping.learn(prompts)
    assert transform is not None
    assert [stripping.covers(transform, each) for each in strange] == [False] * 4
    assert stripping.learn([*prompts, *strange * 2]) is None  # 12 of 132: more than one in twenty


def test_the_file_of_a_dataset_teaches_the_same(tmp_path: Any) -> None:
    prompts = [prompt(RULES, word) for word in WORDS]
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"".join(orjson.dumps({"messages": each, "pair_id": "x"}) + b"\n" for each in prompts))
    assert stripping.of_file(file) == stripping.learn(prompts)


def test_it_is_off_below_ten_thousand_rows_unless_the_policy_says_otherwise() -> None:
    assert not stripping.is_due(Policy(), 9_999)
    assert stripping.is_due(Policy(), 10_000)
    assert stripping.is_due(Policy(strip_from=100), 100)


def test_a_few_of_another_template_under_the_same_roles_do_no_harm_either() -> None:
    rng = random.Random(7)
    begins = [prompt(f"{RULES}Today is {words(rng)}.", words(rng)) for _ in range(120)]
    ends = [prompt(f"To {words(rng)}, on {words(rng)}:\n{RULES}{NOTES}", words(rng)) for _ in range(120)]
    for prompts in (begins, ends):
        mixed = [*prompts[:60], prompt("Odd or even?", words(rng)), *prompts[60:], prompt("Even or odd?", words(rng))]
        transform = stripping.learn(mixed)
        assert transform is not None
        assert [stripping.covers(transform, each) for each in mixed].count(False) == 2
        assert stripping.saved(transform) > len(RULES) / 2
