"""Packed bodies: the exact bytes come back, or an error."""

import os
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from store import blobs
from store.blobs import BadFrame, Dictionary

PLAIN = b'{"model":"big","messages":[{"role":"system","content":"Say whether the number is odd or even."}' * 3
PART = st.binary(max_size=300) | st.sampled_from([PLAIN, PLAIN[:100], b"\x28\xb5\x2f\xfd", b""])


@given(st.lists(PART, min_size=4, max_size=4), st.sampled_from([None, PLAIN, b"x"]))
def test_any_parts_come_back_with_and_without_a_dictionary(parts: list[bytes], content: bytes | None) -> None:
    frame = blobs.pack(parts) if content is None else Dictionary(content).pack(parts)
    assert blobs.unpack(frame, content) == parts


def test_lengths_of_any_size_are_told_apart() -> None:
    for size in (0, 1, 127, 128, 16_383, 16_384, 3_000_000):
        parts = [b"a" * size, b"b" * (size + 1), b"c" * size, b"d" * size]
        assert blobs.unpack(blobs.pack(parts), None) == parts


def test_a_dictionary_makes_what_it_shares_vanish() -> None:
    parts = [PLAIN + b'"17?"', b"odd", b"17?", b"odd"]
    assert len(Dictionary(PLAIN).pack(parts)) < 40 < len(blobs.pack(parts))


@pytest.mark.parametrize("content", [None, PLAIN])
def test_a_damaged_frame_is_an_error_wherever_the_damage_is(content: bytes | None) -> None:
    parts = [PLAIN + os.urandom(50), b"odd" * 10, b"17?", b""]
    frame = blobs.pack(parts) if content is None else Dictionary(content).pack(parts)
    for at in range(len(frame)):
        damaged = frame[:at] + bytes([frame[at] ^ 0x55]) + frame[at + 1 :]
        try:
            assert blobs.unpack(damaged, content) == parts
        except BadFrame:
            continue
        assert at == 0 or content is not None  # nothing but a bit without meaning
    for size in range(len(frame)):
        with pytest.raises(BadFrame):
            blobs.unpack(frame[:size], content)


def test_another_dictionary_is_an_error_not_other_bytes() -> None:
    frame = Dictionary(PLAIN).pack([PLAIN, PLAIN, b"", b""])
    for other in (None, PLAIN.upper(), PLAIN[:-1]):
        with pytest.raises(BadFrame):
            blobs.unpack(frame, other)


def test_a_frame_that_says_it_is_huge_is_refused_before_room_is_made_for_it() -> None:
    single_segment_of, last_block_with_nothing = b"\xe0", b"\x01\x00\x00"
    for size in (blobs.LARGEST + 1, 2**63):
        tracemalloc.start()
        with pytest.raises(BadFrame, match="it says that it holds"):
            blobs.unpack(single_segment_of + size.to_bytes(8, "little") + last_block_with_nothing, None)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_parts_longer_than_all_of_it_are_an_error() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    for whole in (b"\x05\x05\x05abc", b"\x80\x80", b""):
        with pytest.raises(BadFrame):
            blobs.unpack(zstandard.ZstdCompressor(compression_params=parameters).compress(whole), None)


def test_a_dictionary_is_known_by_its_content() -> None:
    sealed, id = blobs.seal(PLAIN), blobs.name(PLAIN)
    assert blobs.unseal(sealed, id) == PLAIN
    assert 0 <= id < 2**63
    for packed, name in ((sealed, id + 1), (blobs.seal(PLAIN + b"x"), id), (sealed[:-1], id), (b"", id)):
        with pytest.raises(BadFrame):
            blobs.unseal(packed, name)
