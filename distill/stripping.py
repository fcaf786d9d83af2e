"""Instruction stripping: what all prompts of a task begin with is learned from its pairs, so that a student need not be shown it.

The result is a `store.prompts.Transform`: data, kept with the adapter, applied by `prompts.apply` in training, evaluation and
proxy. A stripped student is a candidate of its own, and answers only requests that have the very same fixed texts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import orjson

from store.policy import Policy
from store.prompts import Piece, Transform, UnseenTemplate, apply
from store.tables import Message

SAMPLE = 1000  #: prompts that are compared, evenly of the newer half: a date that stays for a day is not to look fixed
COVERED = 0.95  #: share of all prompts that must have the fixed texts, else there is nothing to rely on
LEAST = 64  #: characters that must be saved
PIECE = 32  #: characters of a fixed text in a message that varies: a shorter one stays with what varies
_CHUNK = re.compile(r"[^\n.!?:;]*[\n.!?:;]+\s*|[^\n.!?:;]+$")  # a line or a sentence, with what separates it from the next
_CHUNKS = 2000  # of a message that has more, only the two ends are looked at

Prompt = Sequence[Message]


def is_due(policy: Policy, train_rows: int) -> bool:
    """Whether there are so many rows that a student may be tried without the long prompt."""
    return train_rows >= policy.strip_from


def learn(prompts: Sequence[Prompt]) -> Transform | None:
    """What the prompts, oldest first, begin with; None if that is too little to save, or too few prompts have it.

    Fixed is what each of the newer ones has that begins with the same roles as most, or, if a few among them have another template,
    with the same words as well; the rest of a message varies. The head ends with the first message of a user that varies: what
    comes behind is a conversation.
    """
    newer = prompts[len(prompts) // 2 :] if len(prompts) > SAMPLE else prompts
    some = newer[:: max(1, len(newer) // SAMPLE)]
    for alike in (_roles, _beginning, _end):
        counted = Counter(map(alike, some))
        found = _head([prompt for prompt in some if alike(prompt) == counted.most_common(1)[0][0]])
        if saved(found) >= LEAST and sum(covers(found, prompt) for prompt in prompts) >= COVERED * len(prompts):
            return found
    return None


def of_file(data: Path) -> Transform | None:
    """`learn` from a dataset's JSONL file, whose lines are oldest first."""
    with data.open("rb") as lines:
        return learn([orjson.loads(line)["messages"] for line in lines])


def saved(transform: Transform) -> int:
    """Characters that each prompt is shorter by."""
    return sum(len(text) for piece in transform.head for text in piece.fixed)


def covers(transform: Transform, messages: Prompt) -> bool:
    """Whether a prompt has the transform's fixed texts."""
    try:
        apply(transform, messages)
    except UnseenTemplate:
        return False
    return True


def common(texts: Iterable[str]) -> tuple[str, ...]:
    """The fixed texts of a `Piece`: of equal texts that one alone; ("", "") if they share nothing of note."""
    first, *others = dict.fromkeys(texts)
    if not others:
        return (first,)
    begin = _whole(_prefix([first, *others]))
    rest = [text[len(begin) :] for text in (first, *others)]
    end = _whole(_prefix([text[::-1] for text in rest]))[::-1]
    return (begin, *_between([text[: len(text) - len(end)] for text in rest]), end)


def _head(sample: Sequence[Prompt]) -> Transform:
    """What all of these begin with, be it nothing."""
    head: list[Piece] = []
    for position in range(min(map(len, sample), default=0)):
        roles = {prompt[position]["role"] for prompt in sample}
        texts = [_text(prompt[position]) for prompt in sample]
        strings = [text for text in texts if text is not None]
        if len(roles) > 1 or len(strings) < len(texts):
            break
        head.append(Piece(roles.pop(), common(strings)))
        if head[-1].role == "user" and len(head[-1].fixed) > 1:
            break
    while head and not any(head[-1].fixed):
        head.pop()
    return Transform(tuple(head))


def _roles(prompt: Prompt) -> tuple[str, ...]:
    """Up to the first user's."""
    roles = [message["role"] for message in prompt]
    return tuple(roles[: roles.index("user") + 1] if "user" in roles else roles)


def _beginning(prompt: Prompt) -> tuple[str, ...]:
    return (*_roles(prompt), (_text(prompt[0]) or "")[:PIECE] if prompt else "")


def _end(prompt: Prompt) -> tuple[str, ...]:
    return (*_roles(prompt), (_text(prompt[0]) or "")[-PIECE:] if prompt else "")


def _text(message: Message) -> str | None:
    """The text of a message that is nothing but text."""
    content = message.get("content")
    return content if isinstance(content, str) and message.keys() == {"role", "content"} else None


def _prefix(texts: Sequence[str]) -> str:
    """The longest that all begin with: the first and the last in order have it, so all between them do."""
    first, last = min(texts), max(texts)
    return first[: next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))]


def _whole(prefix: str) -> str:
    """Cut back so that no word, number or date is cut in two; "" if little is left."""
    words = re.search(r"\S*$", prefix)
    kept = prefix[: words.start()] if words else prefix
    return kept if len(kept) >= PIECE else ""


def _between(texts: Sequence[str]) -> list[str]:
    """Runs of lines or sentences that are in all texts, in the same order."""
    chunked = [_CHUNK.findall(text) for text in texts]
    everywhere = set.intersection(*map(set, chunked))
    if sum(map(len, everywhere)) < PIECE or max(map(len, chunked)) > _CHUNKS:
        return []
    runs = [chunked[0]]
    for chunks in chunked[1:]:
        runs = [run for run in _shared(runs, chunks) if sum(map(len, run)) >= PIECE]
    return ["".join(run) for run in runs]


def _shared(runs: list[list[str]], chunks: list[str]) -> list[list[str]]:
    """The parts of the runs that the chunks have too, in this order."""
    edges = {sum(map(len, runs[:number])) for number in range(len(runs))}
    flat = [chunk for run in runs for chunk in run]
    found: list[list[str]] = []
    for begin, _, size in SequenceMatcher(None, flat, chunks, autojunk=False).get_matching_blocks():
        for at in range(begin, begin + size):
            if at == begin or at in edges:
                found.append([])
            found[-1].append(flat[at])
    return found
