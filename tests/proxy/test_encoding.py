"""Content-encodings undone, however they are cut and whatever they are."""

import gzip
import zlib

import pytest

from proxy import encoding
from proxy.encoding import Decoder, decode

TEXT = b"data: some text\n\n" * 50
BARE = zlib.compressobj(wbits=-zlib.MAX_WBITS)
ENCODED = [
    ("GZIP", gzip.compress(TEXT, mtime=0)),
    ("x-gzip", gzip.compress(TEXT[:100], mtime=0) + gzip.compress(TEXT[100:], mtime=0) + b"\0\0"),
    ("deflate", zlib.compress(TEXT)),
    ("Deflate", BARE.compress(TEXT) + BARE.flush()),
    ("deflate", gzip.compress(TEXT, mtime=0)),
    ("gzip", gzip.compress(TEXT, mtime=0) + b"?"),
    ("Identity", TEXT),
    (None, TEXT),
]


@pytest.mark.parametrize(("name", "body"), ENCODED)
def test_a_body_is_read_whatever_the_case_the_members_and_the_framing(name, body):
    assert decode(body, name) == (TEXT, None)


@pytest.mark.parametrize("size", [1, 2, 17])
def test_a_body_in_parts_reads_as_a_whole_one(size):
    for name, body in ENCODED:
        if encoding.known(name):
            decoder = Decoder(10**6)
            assert b"".join(decoder.feed(body[i : i + size]) for i in range(0, len(body), size)) == TEXT


def test_what_grows_beyond_the_limit_ends_there():
    bomb = gzip.compress(bytes(10**6))
    decoder = Decoder(1000)
    assert [len(decoder.feed(bomb)), len(decoder.feed(bomb))] == [1000, 0]


@pytest.mark.parametrize(("name", "body"), [("br", b"\x1b\0"), ("gzip", b"plain text"), ("gzip", b"\x1f\x8b!!!!!!!!!")])
def test_what_cannot_be_read_is_kept_as_it_came_and_says_why(name, body):
    kept, why = decode(body, name)
    assert kept == body
    assert name in why
