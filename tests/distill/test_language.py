"""Which answers are in none of a task's languages."""

import pytest

from distill import language

ENGLISH = (
    "Thank you for your message. The parcel was handed to the carrier yesterday and should arrive at your door on Thursday morning."
)
GERMAN = (
    "Vielen Dank für Ihre Nachricht. Das Paket wurde gestern dem Zusteller übergeben und sollte am Donnerstag bei Ihnen eintreffen."
)
FRENCH = "Merci pour votre message. Le colis a été remis hier au transporteur et devrait arriver chez vous jeudi dans la matinée."


@pytest.mark.parametrize(("text", "expected"), [(ENGLISH, "en"), (GERMAN, "de"), (FRENCH, "fr")])
def test_a_long_text_has_a_language(text: str, expected: str) -> None:
    assert language.of(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "Bonjour!", "card_declined", '{"intent": "refund", "product": "card", "reason": "it was charged twice", "sure": 0.93}' * 3,
     "SELECT a.id, b.name FROM a JOIN b ON a.id = b.id WHERE a.x > 3 AND b.y IN (1, 2, 3) ORDER BY 1;" * 2],
)  # fmt: skip
def test_a_short_text_or_one_that_is_no_prose_has_none(text: str) -> None:
    assert language.of(text) is None


def test_in_a_task_that_answers_in_one_language_another_is_off_whatever_was_asked() -> None:
    counts = {"en>fr": 95, "de>fr": 30, "en>en": 2}
    assert language.off(counts, "en", "fr") is None
    assert language.off(counts, "en", "en") == "its answer is in another language (en) than the task's (fr)"


def test_where_answers_follow_the_question_only_those_that_do_not_are_off() -> None:
    counts = {"en>en": 60, "de>de": 40, "fr>fr": 30, "en>zh": 1}
    assert language.off(counts, "de", "de") is None
    assert language.off(counts, None, "zh") is None
    assert language.off(counts, "en", "zh") == "its answer is in another language (zh) than the question's (en)"
    assert language.off({"en>en": 99, "de>de": 1}, "de", "de") is None


@pytest.mark.parametrize("counts", [{"en>en": 49}, {"en>en": 60, "en>de": 40}, {}])
def test_where_it_is_not_clear_nothing_is_off(counts: dict[str, int]) -> None:
    assert language.off(counts, "en", "de") is None
