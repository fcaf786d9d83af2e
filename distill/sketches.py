"""Sketches: what varies in a prompt as 256 numbers, by which near-duplicates are found among any number of others. No rows here.

A prompt is the set of its 5-shingles of characters. What a task's prompts share is cut off first, wherever in the prompt and in
whatever order it comes (a template, few-shot examples, a customer's description): else every prompt were a near-duplicate of
every other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from store.tables import Message
from store.tasks import text_of

Shingles: TypeAlias = NDArray[np.uint64]  #: hashes, in the order of the text
Sketch: TypeAlias = NDArray[np.uint16]  #: [PERMUTATIONS], or [n, PERMUTATIONS]

WIDTH = 5  # characters of a shingle
SLOT_BITS = 22  # in a template a shingle is the first bits of its hash: one in a thousand is taken for another
PERMUTATIONS, SEED = 256, 1
BANDS, BAND_ROWS = 51, 5  # a Jaccard of 0.6 shares a band in 98 of 100 draws, one of 0.65 in 998 of 1,000, one of 0.2 in 2 of 100
CHAIN = 32  # of the many that share a band, so many are compared with
#: Shares of equal numbers, whose standard deviation is 0.03 at most. Near: of what has a Jaccard of 0.8 (DECISIONS, section 2),
#: 999 in 1,000 are above it. Alike: two that are both that near to a third have 0.6 at least.
NEAR, ALIKE = 0.72, 0.58
VERSION = 100 * int(RMinHash.ALGORITHM_VERSION) + 1  # sketches of another version cannot be compared with these

#: Cut are runs of so many shingles that most prompts have, and longer ones that many have; no less: a question may well use a
#: word that is in the instructions too.
MOST, RUN_OF_MOST = 0.5, 12
MANY, MANY_AT_LEAST, RUN_OF_MANY = 0.1, 24, 32  # 24 of two dozen prompts is all
ENOUGH = MANY_AT_LEAST  # prompts from which to learn what they share

_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_BASES = np.arange(BANDS)
_MULTIPLIERS = (np.random.default_rng(SEED).integers(0, 2**63, size=BAND_ROWS, dtype=np.uint64) << np.uint64(1)) | np.uint64(1)


@dataclass(frozen=True)
class Template:
    """What a task's prompts share, as slots of shingles: [1 << SLOT_BITS] each. None is known of it: nothing is cut."""

    most: NDArray[np.bool_]
    many: NDArray[np.bool_]

    @classmethod
    def read(cls, most: bytes, many: bytes) -> "Template | None":
        """From `packed`; None for nothing."""
        return cls(_flags(np.frombuffer(most, "<u4")), _flags(np.frombuffer(many, "<u4"))) if many else None

    def packed(self) -> tuple[bytes, bytes]:
        """(most, many), four bytes a shingle."""
        return tuple(np.flatnonzero(flags).astype("<u4").tobytes() for flags in (self.most, self.many))  # type: ignore[return-value]


def learn(prompts: Sequence[Shingles], known: Template | None) -> Template | None:
    """What is known and what these prompts, each of another conversation, share besides. None from too few to tell.

    Nothing is forgotten: a task's prompts may change, and those of before go on being cut as they were.
    """
    if len(prompts) < ENOUGH:
        return known
    counts = np.zeros(1 << SLOT_BITS, np.int32)
    for prompt in prompts:
        counts[np.unique(_slots(prompt))] += 1
    most, many = counts > MOST * len(prompts), counts >= max(MANY_AT_LEAST, MANY * len(prompts))
    return Template(most, many) if known is None else Template(known.most | most, known.many | many)


def text(messages: Sequence[Message], *, fixed: bool) -> str:
    """All that a prompt says, tool calls included; system and developer messages only if `fixed`, or if there is nothing else."""
    said = [m for m in messages if fixed or m.get("role") not in ("system", "developer")] or messages
    return "\n".join(part for message in said for part in _said(message))


def shingles(text: str) -> Shingles:
    """A hash for each 5 characters in a row, whatever their case and the width of their spaces; as many reach over either end."""
    edge = "\n" * (WIDTH - 1)
    whole = edge + " ".join(text.casefold().split()) + edge
    codes = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    hashes = np.zeros(len(codes) - WIDTH + 1, np.uint64)
    for at in range(WIDTH):
        hashes = hashes * _A + codes[at : at + len(hashes)]
    hashes = (hashes ^ (hashes >> np.uint64(32))) * _B
    return hashes ^ (hashes >> np.uint64(29))


def varying(prompt: Shingles, template: Template | None) -> Shingles:
    """The prompt's own shingles, each once. Of one that has none, its hash as a whole: only equal ones are its duplicates."""
    own = prompt
    if template is not None:
        slots = _slots(prompt)
        own = prompt[~(_in_runs(template.most[slots], RUN_OF_MOST) | _in_runs(template.many[slots], RUN_OF_MANY))]
    if not own.size:
        return np.frombuffer(hashlib.blake2b(prompt.tobytes(), digest_size=8).digest(), np.uint64)
    return np.unique(own)


def sketch(prompts: Sequence[Shingles]) -> Sketch:
    """MinHashes of sets of shingles: [n, PERMUTATIONS], 16 bits each."""
    ends = np.cumsum([0, *(len(prompt) for prompt in prompts)]).astype(np.uint64)
    matrix: Any = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(prompts), ends, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), np.uint32).astype(np.uint16)


class Index:
    """Sketches by their bands (LSH): which of those added are near another. Numbered from 0 in the order of adding."""

    def __init__(self, sketches: Sketch | None = None) -> None:
        self._count = 0
        self._grow(np.empty((0, PERMUTATIONS), np.uint16) if sketches is None else sketches)

    def __len__(self) -> int:
        return self._count

    def add(self, sketch: Sketch) -> None:
        """Remember one more."""
        if self._count == len(self._sketches):
            self._grow(self._sketches)
        number, slots = self._count, self._slots_of(sketch[None])[:, 0]
        self._sketches[number] = sketch
        self._next[:, number] = self._heads[_BASES, slots]
        self._heads[_BASES, slots] = number
        self._count += 1

    def near(self, sketch: Sketch) -> dict[int, float]:
        """Those alike, by number, and how much; of very many, the latest. Above NEAR they are near-duplicates."""
        at = self._heads[_BASES, self._slots_of(sketch[None])[:, 0]]
        found = []
        for _ in range(CHAIN):
            there = at >= 0
            if not there.any():
                break
            found.append(at[there])
            at = np.where(there, self._next[_BASES, at], -1)
        if not found:
            return {}
        candidates = np.unique(np.concatenate(found)).astype(np.int64)
        shares = (self._sketches[candidates] == sketch).mean(axis=1)
        alike = shares >= ALIKE
        return dict(zip(candidates[alike].tolist(), shares[alike].tolist(), strict=True))

    def _grow(self, sketches: Sketch) -> None:
        """Room for twice as many as these, which are linked anew: each to the one before it in the same slot."""
        count, room = len(sketches), max(1024, 2 * len(sketches))
        self._sketches = np.empty((room, PERMUTATIONS), np.uint16)
        self._sketches[:count] = sketches
        self._bits = np.uint64(room.bit_length())
        self._heads = np.full((BANDS, 1 << int(self._bits)), -1, np.int32)
        self._next = np.full((BANDS, room), -1, np.int32)
        self._count = count
        if not count:
            return
        for band in range(BANDS):
            slots = self._slots_of(sketches[:, band * BAND_ROWS : (band + 1) * BAND_ROWS])[0]
            order = np.argsort(slots, kind="stable").astype(np.int32)
            same = slots[order[1:]] == slots[order[:-1]]
            self._next[band, order[1:][same]] = order[:-1][same]
            last = order[np.append(~same, True)]
            self._heads[band, slots[last]] = last

    def _slots_of(self, sketches: Sketch) -> NDArray[np.int64]:
        """[bands, n]: where in the table each band of each belongs."""
        bands = sketches[:, : BANDS * BAND_ROWS].reshape(len(sketches), -1, BAND_ROWS).astype(np.uint64)
        keys = ((bands + np.uint64(1)) * _MULTIPLIERS).sum(axis=2) * _B
        slots: NDArray[np.int64] = (keys >> (np.uint64(64) - self._bits)).astype(np.int64).T
        return slots


def _said(message: Message) -> list[str]:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return [text_of(message.get("content")), *(f"{call['name']} {call.get('arguments', '')}" for call in calls)]


def _in_runs(flags: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """Those of the flags that are set with so many in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).view(np.int8))).reshape(-1, 2)
    found = np.zeros_like(flags)
    for start, end in edges[edges[:, 1] - edges[:, 0] >= least]:
        found[start:end] = True
    return found


def _slots(prompt: Shingles) -> NDArray[np.int64]:
    return (prompt >> np.uint64(64 - SLOT_BITS)).astype(np.int64)


def _flags(slots: NDArray[np.uint32]) -> NDArray[np.bool_]:
    flags = np.zeros(1 << SLOT_BITS, np.bool_)
    flags[slots] = True
    return flags
