"""What many prompts have in common: groups of texts that are one template filled in, and the templates.

Texts are compared by runs of three words, order aside, so that passages and examples may come in any number and order. All texts
are divided, again and again, by what tells them apart:
- texts with next to nothing in common are not of one template;
- two or three wordings of one place, of which each comes again and again, are different instructions: different tasks;
- so are more of them, where the wordings are longer than what is common, or whole sentences, and few;
- else (names, passages, examples: many wordings, or ones that hardly come again) the place is open, and its texts are one task.
Dates, times, addresses and long numbers are open at once.

In the manner of Drain and IPLoM (logs), with sets of texts in place of positions, which long prompts do not keep.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

HOLE = "\0"  #: in a text: here may be anything; as many as were seen there
RUN = 3  #: words that are compared as one
COMMON, FEW = 12, 5  #: runs that make texts likely to be of one template, however long they are; and many texts
MANY = 16
EVIDENCE = 16  #: captures of which at least a template with open places is learned,
DISTINCT = 4  #: in at least so many wordings
SUPPORT = 12  #: captures that show that a wording is there to stay
SENTENCE = 5  #: words

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec)[a-z]*\.?"
_DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|(?:mon|tue|wed|thu|fri|sat|sun)\b"
_TYPED = re.compile(
    rf"""(?ix)
    (?P<id>\b[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}\b | \b(?=[a-z]*\d)[0-9a-f]{{12,}}\b | \b\d{{5,}}\b)
    | (?P<mail>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)
    | (?P<url>https?://[^\s"'<>)\]]+)
    | (?P<date>
        (?:\b(?:{_DAY})[,]?\s+)? (?:
            \b\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}(?:[T ]\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?:\.\d+)?
                (?:Z|[+-]\d{{2}}:?\d{{2}}|\s*(?:UTC|GMT)\b)?)?
          | \b\d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{2,4}}\b
          | \b\d{{1,2}}(?:st|nd|rd|th|\.)?\s+(?:of\s+)?\b{_MONTH}(?:,?\s+\d{{4}})?\b
          | \b{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?\b(?:,?\s+\d{{4}})?
          | \b{_MONTH}\s+\d{{4}}\b
        )
      | \b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b
      | \b\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?:\s*[ap]\.?m\b\.?)?(?:\s*(?:UTC|GMT|CET|EST|PST)\b)?
    )
    """
)
_WORD = re.compile(r"\0+|\w+|[^\w\s]")
#: What every other prompt says; runs of these alone say nothing of a template.
_GENERIC = frozenset(
    ("You", "you", "are", "a", "an", "the", "helpful", "assistant", "AI", "expert", "that", "who", "and", "Your", "your", "task",
     "is", "to", "with", "of", "in", ".", ",", ":", "-")
)  # fmt: skip
_TYPED_GAP = 64  # characters that a date, an id, ... may have
_LEAST = 4  # characters of a segment
_END = 8  # words
_CANDIDATES, _SEEDS = 600, 200


@dataclass(frozen=True)
class Text:
    """A prompt, or a template's segments with HOLE between them, and how many captures have it."""

    text: str
    weight: int


@dataclass(frozen=True)
class Group:
    """Texts that are one template filled in. Alone, a text is its own template, with its dates and the like left open."""

    members: tuple[int, ...]  #: positions in what was given
    segments: tuple[str, ...]
    gaps: tuple[int, ...]


def learn(texts: Sequence[Text]) -> list[Group]:
    """Every text in one group. Milliseconds a text: give it no more than a thousand or two."""
    if not texts:
        return []
    found = _Texts(texts)
    groups = []
    for members in found.divided():
        for some in found.believed(members):
            groups.append(found.group(some))
    return groups


class _Texts:
    """Texts as sets of runs. A set of texts is an int, a bit each."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = texts
        self.words = [list(_words(text.text)) for text in texts]
        numbers: dict[str, int] = {HOLE: 0}
        self.numbers = [
            [0 if word[0] == HOLE == word[-1] else numbers.setdefault(word, len(numbers)) for word, _, _ in words]
            for words in self.words
        ]
        self.runs = [_runs(each) for each in self.numbers]
        self.all = (1 << len(texts)) - 1
        self.total = sum(text.weight for text in texts)
        self._templates = sum(1 << number for number, text in enumerate(texts) if HOLE in text.text)
        self._least = _support(self.total)
        generic = {numbers[word] for word in _GENERIC if word in numbers}
        self._classes = self._count([_runs(each, generic) for each in self.numbers])
        self._heads, self._tails = (
            set(self._count(self.runs, set().union(*(_runs(each[end], generic) for each in self.numbers))))
            for end in (slice(_END), slice(-_END, None))
        )
        self._word_sets = set(self._count([set(each) for each in self.numbers]))

    def divided(self) -> Iterator[int]:
        """Sets of texts of which each may be one template."""
        left = [(self.all, self._classes)]
        while left:
            texts, classes = left.pop()
            if texts & (texts - 1) == 0:
                yield texts
                continue
            inside: dict[int, int] = defaultdict(int)
            for members, mass in classes.items():
                if members & texts:
                    inside[members & texts] += mass
            parts = self._parts(texts, inside)
            if parts is None:
                yield texts
            else:
                left += [(part, inside) for part in parts]

    def believed(self, texts: int) -> list[int]:
        """The set, if there is enough to say that it is one template; else what of it is one without any doubt."""
        members = list(_bits(texts))
        if len(members) == 1:
            return [texts]
        weight = sum(self.texts[each].weight for each in members)
        if len(members) >= DISTINCT and weight >= EVIDENCE:
            return [texts]
        same: dict[tuple[int, ...], int] = defaultdict(int)  # what differs only in dates and the like
        for each in members:
            same[tuple(self.numbers[each])] |= 1 << each
        return list(same.values())

    def group(self, texts: int) -> Group:
        """A set's template: what all have, in the order that all have it in."""
        members = list(_bits(texts))
        shortest = min(members, key=lambda each: len(self.numbers[each]))
        common = set.intersection(*(self.runs[each] for each in members)) if len(members) > 1 else self.runs[shortest]
        segments = list(_covered(self.texts[shortest].text, self.words[shortest], self.numbers[shortest], common))
        raw = [self.texts[each].text for each in members]
        segments = [segment for segment in segments if len(segment) >= _LEAST]
        for text in raw:
            segments = _in_order([piece for segment in segments for piece in _within(segment, text)], text)
        return Group(tuple(members), tuple(segments), _gaps(segments, raw, self._typed(members)))

    def _typed(self, members: list[int]) -> bool:
        """Whether they differ in nothing but what is typed."""
        return len({tuple(self.numbers[each]) for each in members}) == 1

    def _count(self, sets: Sequence[set[int]], only: set[int] | None = None) -> dict[int, int]:
        """By set of texts: how many runs (words) are in these and no others. Those of one text that hardly comes do not count."""
        where: dict[int, int] = defaultdict(int)
        for number, each in enumerate(sets):
            bit = 1 << number
            for value in each if only is None else each & only:
                where[value] |= bit
        counted = Counter(where.values())
        return {
            members: mass
            for members, mass in counted.items()
            if members & (members - 1) or self.texts[members.bit_length() - 1].weight >= self._least
        }

    def _weight(self, texts: int) -> int:
        return sum(self.texts[each].weight for each in _bits(texts))

    def _parts(self, texts: int, inside: dict[int, int]) -> list[int] | None:
        """The set's parts; None if it is one template, as far as one can tell."""
        common = inside.get(texts, 0)
        shortest = min(len(self.runs[each]) for each in _bits(texts))
        if common < _needed(texts.bit_count(), shortest):
            return self._by_likeness(texts, inside)
        weight = self._weight(texts)
        # what is new beside a template: the first few of a task of its own must not be taken for one more wording
        support = _support(weight) if not texts & self._templates else 2
        words = {members & texts for members in self._word_sets}
        candidates = sorted(
            ((members, mass) for members, mass in inside.items() if members != texts and members in words),
            key=lambda each: (-each[0].bit_count(), -each[1]),
        )[:_CANDIDATES]
        for first, mass in candidates[:_SEEDS]:
            parts, masses, rest = [first], [mass], texts & ~first
            if self._weight(first) < support:
                continue
            for members, mass in candidates:
                if members & ~rest == 0 and self._weight(members) >= support:
                    parts.append(members)
                    masses.append(mass)
                    rest &= ~members
            if len(parts) == 1 and self._weight(rest) >= support and (rest in inside or _is_alone(first, masses[0], candidates)):
                parts.append(rest)  # which lack a sentence
                rest = 0
            left = self._weight(rest) if rest else 0
            if len(parts) > 1 and left <= weight / 10 and _are_tasks(masses, len(parts), common):
                return [*parts, rest] if rest else parts
        return None

    def _by_likeness(self, texts: int, inside: dict[int, int]) -> list[int]:
        """Those that have most in common, and the others.

        What prompts begin with, or else end with, is likelier a template's than a passage is that many have.
        """
        likely = [
            (members, mass)
            for members, mass in inside.items()
            if members != texts
            and members & (members - 1)
            and mass >= _needed(members.bit_count(), min(len(self.runs[each]) for each in _bits(members)))
        ]
        if not likely:
            return [1 << each for each in _bits(texts)]
        heads, tails = ({members & texts for members in each} for each in (self._heads, self._tails))
        best, _ = max(likely, key=lambda each: (each[0] in heads, each[0] in tails, each[0].bit_count(), each[1]))
        return [best, texts & ~best]


def _support(weight: int) -> int:
    return min(SUPPORT, max(3, weight // 8))


def _is_alone(texts: int, mass: int, others: list[tuple[int, int]]) -> bool:
    """Whether these have a sentence that the others have not, and no other is here and there in both: then it is one of a pool."""
    sentence = SENTENCE + RUN - 1
    return mass >= sentence and not any(each & texts and each & ~texts for each, its_mass in others if its_mass >= sentence)


def _are_tasks(masses: list[int], parts: int, common: int) -> bool:
    """Whether wordings, each with so many runs of its own, are different tasks and not one place filled in."""
    middle = sorted(masses)[len(masses) // 2]
    words = middle - RUN + 1  # of a wording in one piece
    if parts < DISTINCT:
        return True
    if parts <= 2 * DISTINCT:
        return words >= SENTENCE
    return words >= SENTENCE and middle * 3 > common and parts <= 8 * DISTINCT


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """(word, beginning, end); what is typed is one word, the same for all of its type."""
    at = start = 0
    last: str | None = None
    for typed in _TYPED.finditer(text):
        if typed.lastgroup != last or text[at : typed.start()].strip(" ,T"):  # else a date, and then a time
            if last is not None:
                yield f"{HOLE}{last}", start, at
            yield from _plain(text, at, typed.start())
            start, last = typed.start(), typed.lastgroup
        at = typed.end()
    if last is not None:
        yield f"{HOLE}{last}", start, at
    yield from _plain(text, at, len(text))


def _plain(text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    for word in _WORD.finditer(text, start, end):
        yield word.group(), word.start(), word.end()


def _runs(numbers: list[int], generic: Collection[int] = ()) -> set[int]:
    """Runs of words as numbers; what has a HOLE in it is none, nor what is generic. A text that is shorter than one is one."""
    if len(numbers) < RUN:
        numbers = [*numbers, *[-1] * (RUN - len(numbers))]
    return {
        (a << 42) ^ (b << 21) ^ c
        for a, b, c in zip(numbers, numbers[1:], numbers[2:], strict=False)
        if a and b and c and not (a in generic and b in generic and c in generic)
    }


def _needed(texts: int, shortest: int) -> int:
    """How many runs so many texts must have in common to be likely of one template."""
    return min(FEW if texts >= MANY else COMMON, max(1, shortest // 2))


def _covered(text: str, words: list[tuple[str, int, int]], numbers: list[int], common: set[int]) -> Iterator[str]:
    """The pieces of a text that are made of common runs; what is typed ends a piece."""
    inside = [False] * len(numbers)
    short = len(numbers) < RUN
    for at in range(len(numbers) if short else len(numbers) - RUN + 1):
        if short or _runs(numbers[at : at + RUN]) & common:
            for each in range(at, min(at + RUN, len(numbers))):
                inside[each] = True
    start, end = -1, -1
    for (word, first, last), common_word in zip(words, inside, strict=True):
        if common_word and not word.startswith(HOLE):
            start, end = (first if start < 0 else start), last
        elif start >= 0:
            yield text[start:end]
            start = -1
    if start >= 0:
        yield text[start:end]


def _within(segment: str, text: str) -> list[str]:
    """The pieces of a segment that the text has, each as long as can be."""
    if segment in text:
        return [segment]
    words = [(word.start(), word.end()) for word in _WORD.finditer(segment)]
    pieces, first = [], 0
    while first < len(words):
        least, most = first, len(words)  # words[first:least] is in the text, words[first:most + 1] is not
        while least < most:
            middle = (least + most + 1) // 2
            if segment[words[first][0] : words[middle - 1][1]] in text:
                least = middle
            else:
                most = middle - 1
        if least - first >= RUN:
            pieces.append(segment[words[first][0] : words[least - 1][1]])
        first = max(least, first + 1)
    return [piece for piece in pieces if len(piece) >= _LEAST]


def _in_order(segments: list[str], text: str) -> list[str]:
    """Those segments, as many characters as can be, that the text has one after the other."""
    places = [(text.find(segment), segment) for segment in segments]
    best: list[tuple[int, int]] = []  # for each: characters of the best chain that ends with it, and where it came from
    for number, (place, segment) in enumerate(places):
        chain = (0, -1)
        if place >= 0:
            for before in range(number):
                if places[before][0] >= 0 and places[before][0] + len(places[before][1]) <= place and best[before][0] > chain[0]:
                    chain = (best[before][0], before)
        best.append((chain[0] + len(segment) if place >= 0 else 0, chain[1]))
    at = max(range(len(best)), key=lambda each: best[each][0], default=-1)
    kept: list[str] = []
    while at >= 0 and places[at][0] >= 0:
        kept.append(places[at][1])
        at = best[at][1]
    return list(reversed(kept))


def _gaps(segments: list[str], texts: list[str], typed: bool) -> tuple[int, ...]:
    """The most characters that may be before each segment and behind the last: more than was ever seen."""
    if not segments:
        return ()
    most = [0] * (len(segments) + 1)
    for text in texts:
        at = 0
        for number, segment in enumerate(segments):
            found = text.find(segment, at)
            most[number] = max(most[number], found - at)
            at = found + len(segment)
        most[-1] = max(most[-1], len(text) - at)
    room = _TYPED_GAP if typed else 0
    return tuple(max(room, 4 * gap + 64) if gap else 0 for gap in most)


def _bits(texts: int) -> Iterator[int]:
    while texts:
        lowest = texts & -texts
        yield lowest.bit_length() - 1
        texts ^= lowest
