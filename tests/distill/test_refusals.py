"""Answers that refuse in words, and those that only sound like it."""

import pytest

from distill.refusals import refuses


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, but I cannot help with that request.",
        "Sorry, I can't help with this.",
        "I cannot assist with that request.",
        "As an AI language model, I cannot provide medical advice.",
        "As an AI, I'm unable to browse the web.",
        "I apologize, but I am unable to fulfill this request.",
        "I'm unable to help with that.",
        "I'm sorry, I can't comply with that.",
        "I can't help you with that.",
        "I must decline to answer that.",
        "Unfortunately, I cannot provide instructions for building weapons.",
        "Sorry, but I can't generate that kind of content.",
        '"I can\'t do that."',
    ],
)
def test_a_refusal_is_told(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't find your order. Could you give me its number?",
        "I'm sorry, I can't change a basic economy flight.",
        "Unfortunately, I cannot provide a refund for this ticket, as it was bought more than 24 hours ago.",
        "Sorry to hear that! I can help with that.",
        "I cannot recommend it enough!",
        "I can't help but admire this.",
        "I can't see any bug in this code.",
        "I am unable to locate a flight on that day.",
        "As an AI company, we build models.",
        "Sarcastic: 'I'm sorry, but I can't help with that.'",
        "card_declined",
        "",
        "I'm sorry, but I can't help with that. " + "Here is all that I know of it instead. " * 40,
    ],
)
def test_what_only_begins_like_one_is_an_answer(answer: str) -> None:
    assert not refuses(answer)
