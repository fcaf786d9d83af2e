"""What goes into a dictionary: what several voices have in common, and nothing that only one says."""

import random
import string

from hypothesis import given
from hypothesis import strategies as st

from store import shared

SYSTEM = b"You sort parcels. Answer with the town alone, in capital letters, and with nothing else. Towns: Aachen, Bonn, Ulm. "


def word(rng: random.Random, size: int = 12) -> str:
    return "".join(rng.choices(string.ascii_letters, k=size))


def voices(count: int, private: list[bytes]) -> dict[str, list[bytes]]:
    return {f"voice {n}": [SYSTEM + private[n] + b" Thank you very much in advance.", b'{"town": "BONN"}'] for n in range(count)}


def test_what_all_say_is_in_it_and_what_one_says_is_not() -> None:
    rng = random.Random(1)
    secrets = [f"My name is {word(rng)}, card {rng.randrange(10**15, 10**16)}.".encode() for _ in range(40)]
    text = shared.text(voices(40, secrets))
    assert SYSTEM.strip() in text
    assert b"Thank you very much in advance." in text
    assert b'{"town": "BONN"}' in text
    assert [secret for secret in secrets if secret[11:23] in text or secret[-17:-1] in text] == []
    assert len(text) < 2 * len(SYSTEM)  # said by forty, kept once


def test_one_voice_that_repeats_itself_is_one_voice() -> None:
    private = [f"order {n}".encode() for n in range(5)]
    often = voices(5, private)
    often["voice 0"] *= 50
    often["voice 0"] += [b"I am Ada Lovelace of 12 Old Street, as I said."] * 50
    assert b"Lovelace" not in shared.text(often)


def test_too_few_voices_have_nothing_in_common() -> None:
    assert shared.text(voices(shared.VOICES - 1, [b"a", b"b", b"c"])) == b""
    assert shared.text({}) == b""


@given(st.lists(st.binary(max_size=200), max_size=12))
def test_each_run_of_tokens_in_it_was_said_by_enough(bodies: list[bytes]) -> None:
    said = {str(n): [body, SYSTEM] for n, body in enumerate(bodies)}
    for piece_of in shared._windows(shared.text({n: both[:1] for n, both in said.items()})):
        assert piece_of[0] < piece_of[1]
    text = shared.text(said)
    enough = [body for body in bodies if sum(body in other for other in bodies) >= shared.VOICES]
    if len(bodies) < shared.VOICES:
        assert text == b""
    elif not enough:
        assert shared.text({n: [SYSTEM] for n in said}) in text


def test_it_is_limited_and_keeps_what_most_say() -> None:
    rng = random.Random(2)
    rare = " ".join(word(rng) for _ in range(2 * shared.LARGEST // 12)).encode()
    said = {str(n): [SYSTEM, rare] if n < shared.VOICES else [SYSTEM] for n in range(20)}
    text = shared.text(said)
    assert len(text) == shared.LARGEST
    assert SYSTEM in text


def test_a_dictionary_is_made_with_tables_only_where_they_help() -> None:
    rng = random.Random(3)
    samples = [[SYSTEM + f"Parcel {n} to {word(rng)} street".encode(), b"BONN", b"", b""] for n in range(40)]
    text = shared.text({str(n): sample[:2] for n, sample in enumerate(samples)})
    made = shared.dictionary(text, samples)
    assert made is not None
    assert made.content.endswith(text)
    plain = shared.blobs.Dictionary(text)
    assert shared.size(made, samples) <= shared.size(plain, samples) < shared.size(None, samples) / 2
    assert len(made.content) > len(text)


def test_nothing_in_common_makes_no_dictionary() -> None:
    assert shared.dictionary(b"", [[b"a", b"b", b"", b""]]) is None
    assert shared.dictionary(b"\x37\xa4\x30\xec" + SYSTEM, [[b"a", b"b", b"", b""]]) is None  # zstd would take it for tables


def test_too_few_samples_to_count_letters_in_still_make_one() -> None:
    made = shared.dictionary(SYSTEM, [[SYSTEM, b"", b"", b""]])
    assert made is not None
    assert made.content == SYSTEM
