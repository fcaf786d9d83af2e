"""What a task's exchanges have in common, as a zstd dictionary: no text that is only one person's is in it.

A piece of text gets in if each run of WINDOW tokens in it (words, and what stands between words) occurs with at least VOICES
different people or conversations. zstd's own training would take whole lines of single exchanges: of its result only the entropy
tables are used, which are counts of bytes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import zstandard

from store import blobs

VOICES = 4  #: different people or conversations
WINDOW = 3  #: tokens
SAMPLE_BYTES = 32_768  #: of a body that are looked at
LARGEST = 65_536  #: bytes of a dictionary's text
_MAGIC = b"\x37\xa4\x30\xec"  # what begins so is read as a dictionary with tables
_LEAST = 64  # bytes of text for which a dictionary is made
_GAP = 32  # bytes of known text between two new pieces that are kept with them, so that one match covers all
_TOKEN = re.compile(rb"\w{1,16}|\W{1,16}")
_TABLES = 1024  # bytes that entropy tables take at most


def text(voices: Mapping[str, Sequence[bytes]]) -> bytes:
    """What the voices' bodies share, the most common last. `voices`: bodies by person or conversation."""
    counts: Counter[bytes] = Counter()
    for bodies in voices.values():
        counts.update({body[begin:end] for body in bodies for begin, end in _windows(body)})
    common = {window for window, count in counts.items() if count >= VOICES}
    pieces: list[tuple[float, bytes]] = []
    seen: set[bytes] = set()
    for body in (body for bodies in voices.values() for body in bodies):
        for begin, end, new in _pieces(body, common, seen):
            pieces.append((sum(counts[window] for window in new) / len(new), body[begin:end]))
            seen |= new
    pieces.sort(key=lambda piece: piece[0])
    return b"".join(piece for _, piece in pieces)[-LARGEST:]


def dictionary(shared: bytes, samples: Sequence[Sequence[bytes]]) -> blobs.Dictionary | None:
    """A dictionary of the shared text, with entropy tables if that makes the samples (parts of captures) smaller. None: no text."""
    if len(shared) < _LEAST or shared.startswith(_MAGIC):
        return None
    best = plain = blobs.Dictionary(shared)
    tables = _tables(len(shared), [b"".join(parts) for parts in samples])
    if tables is not None:
        best = min(plain, blobs.Dictionary(tables + shared), key=lambda each: size(each, samples))
    return best


def size(dictionary: blobs.Dictionary | None, samples: Iterable[Sequence[bytes]]) -> int:
    """Bytes that the samples take when packed."""
    pack = dictionary.pack if dictionary is not None else blobs.pack
    return sum(len(pack(parts)) for parts in samples)


def windows(body: bytes) -> set[bytes]:
    """The runs of WINDOW tokens in a body, as far as it is looked at."""
    body = body[:SAMPLE_BYTES]
    return {body[begin:end] for begin, end in _windows(body)}


def _windows(body: bytes) -> Iterator[tuple[int, int]]:
    """(begin, end) of each run of WINDOW tokens."""
    edges = [0, *(token.end() for token in _TOKEN.finditer(body))]
    return zip(edges, edges[WINDOW:], strict=False)


def _pieces(body: bytes, common: set[bytes], seen: set[bytes]) -> Iterator[tuple[int, int, set[bytes]]]:
    """(begin, end, new windows) of each stretch of common windows with no more than _GAP bytes of known ones on end."""
    begin = last = -1
    new: set[bytes] = set()
    for start, end in _windows(body):
        window = body[start:end]
        shared = window in common
        if begin >= 0 and (not shared or end - last > _GAP):
            yield begin, last, new
            begin, new = -1, set()
        if shared and window not in seen:
            begin, last = (start if begin < 0 else begin), end
            new.add(window)
    if begin >= 0:
        yield begin, last, new


def _tables(length: int, samples: Sequence[bytes]) -> bytes | None:
    """A trained dictionary without its text: magic number, id, entropy tables, first offsets. None: too little to learn from."""
    try:
        trained = zstandard.train_dictionary(max(length, 1024) + _TABLES, list(samples), k=64, d=8).as_bytes()
    except zstandard.ZstdError:
        return None
    # zstd says nowhere how long the tables are; a dictionary that is cut off in them is refused, and so is one with less than
    # the eight bytes of text that its first offsets (1, 4, 8) point into
    for end in range(32, min(_TABLES, len(trained))):
        try:
            zstandard.ZstdCompressionDict(trained[:end], dict_type=zstandard.DICT_TYPE_FULLDICT).precompute_compress(level=1)
        except zstandard.ZstdError:
            continue
        return trained[: end - 8]
    return None
