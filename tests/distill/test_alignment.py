"""Prompts that are one template filled in fall into one group, and others do not; decided against what is known to be true."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import alignment
from distill.alignment import HOLE, Group, Text
from store.templates import Template
from tests import prompts


def groups(texts: list[str], weight: int = 1) -> list[set[str]]:
    return [{texts[each] for each in group.members} for group in learned(texts, weight)]


def learned(texts: list[str], weight: int = 1) -> list[Group]:
    return alignment.learn([Text(text, weight) for text in texts])


@pytest.mark.parametrize("seed", range(4))
def test_templates_with_dates_names_passages_and_shuffled_examples_are_found(seed: int) -> None:
    told = [(task, request["messages"][0]["content"]) for task, request in prompts.requests(list(prompts.SYSTEMS), 60, seed)]
    counts = Counter(text for _, text in told)
    texts = list(counts)
    number = {
        texts[member]: str(index)
        for index, group in enumerate(alignment.learn([Text(text, counts[text]) for text in texts]))
        for member in group.members
    }
    assert prompts.adjusted_rand([task for task, _ in told], [number[text] for _, text in told]) >= 0.95


def test_every_text_is_in_one_group_and_fits_its_template() -> None:
    texts = sorted({request["messages"][0]["content"] for _, request in prompts.requests(list(prompts.SYSTEMS), 40, 7)})
    found = learned(texts)
    assert sorted(each for group in found for each in group.members) == list(range(len(texts)))
    for group in found:
        template = Template("t", group.segments, group.gaps)
        assert all(template.fits(texts[each]) for each in group.members), group


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=20))
def test_whatever_the_texts_are_each_is_in_one_group(texts: list[str]) -> None:
    assert sorted(each for group in learned(texts, 20) for each in group.members) == list(range(len(texts)))


def test_one_sentence_that_differs_makes_two_tasks_when_both_come_again_and_again() -> None:
    texts = [
        f"You help the customers of Fabrikam. The customer is {name}. {order}. Never promise anything."
        for name in prompts.NAMES
        for order in ("Answer in one short sentence", "Answer with three options to choose from")
    ]
    assert sorted(map(len, groups(texts))) == [len(prompts.NAMES)] * 2


def test_one_sentence_more_makes_two_tasks() -> None:
    texts = [
        f"You help the customers of Fabrikam. The customer is {name}. {more}Never promise anything, and stay polite at all times."
        for name in prompts.NAMES
        for more in ("", "Reply in verse, and rhyme every second line. ")
    ]
    assert sorted(map(len, groups(texts))) == [len(prompts.NAMES)] * 2


def test_texts_that_share_a_long_preamble_are_different_tasks() -> None:
    preamble = "You work for Fabrikam, a maker of garden tools. Be brief. Do not give legal advice."
    orders = (
        "Sort the message into complaint, question or praise, and answer with one of these words alone.",
        "Translate the message into Spanish, with the formal form of address throughout the text.",
        "Write a reply of two friendly sentences that thanks the customer for writing to us.",
        "List each product that the message mentions as a JSON array of strings, in order of mention.",
        "Say whether the customer is likely to cancel, and answer with a number between zero and one.",
        "Extract order number, date of purchase and the shop where it was bought as three lines.",
    )
    assert len(groups([f"{preamble} {order}" for order in orders], weight=50)) == len(orders)


def test_dates_are_open_at_once_and_other_differences_only_with_evidence() -> None:
    assert len(groups([f"It is {day} May 2026. Sort the ticket." for day in (1, 2)])) == 1
    assert len(groups([f"You talk to {name}. Sort the ticket." for name in ("Ann", "Bob")])) == 2
    assert len(groups([f"You talk to {name.split()[0]}. Sort the ticket by urgency." for name in prompts.NAMES])) == 1


def test_the_first_requests_of_a_new_task_are_not_taken_for_another_wording_of_a_known_one() -> None:
    known = f"You help the customers of Fabrikam. The customer is {HOLE * 20}. Answer in one sentence. Never promise anything."
    new = [
        f"You help the customers of Fabrikam. The customer is {name}. Ask three questions back. Never promise anything."
        for name in prompts.NAMES[:4]
    ]
    found = alignment.learn([Text(known, 64), *(Text(text, 1) for text in new)])
    assert (0,) in [group.members for group in found]


def test_a_template_that_is_learned_again_keeps_what_it_left_open() -> None:
    found = alignment.learn([Text(f"Sort by urgency and by topic: {HOLE * 500} Answer with one word, please.", 64)])
    assert found[0].segments == ("Sort by urgency and by topic:", "Answer with one word, please.")
    assert found[0].gaps[1] >= 4 * 500
