"""Redaction: what is personal in the stored copy of a pair, replaced by values of the same form that are nobody's.

The same value becomes the same one throughout a pair, in prompt and answer, so that a student learns to copy what it is given.
Found by patterns and checksums alone (presidio's and a few of our own): names, addresses, birthdays and all else that takes
understanding are not found. The capture keeps the bytes of the wire.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

from store.policy import Redacted
from store.tables import Message, Pair

#: Where two kinds overlap, the first wins.
ORDER: tuple[Redacted, ...] = ("key", "email", "iban", "card", "ssn", "ip", "phone")
_LEAST = {"key": 0.5, "email": 0.9, "iban": 0.9, "card": 0.9, "ssn": 0.4, "ip": 0.5, "phone": 0.3}  # presidio's scores
_KEYS = {
    "OpenAI, Stripe": r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{20,}",
    "AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "GitLab, Hugging Face, npm": r"\b(?:glpat-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36,})",
    "Slack": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "Google": r"\bAIza[0-9A-Za-z_-]{35}",
    "JWT": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "PEM": r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----",
    "named": r"(?i)(?<=\b(?:(?:api|access)[ _-]?key|secret|password|passwd|pwd|auth[ _-]?token|bearer)"
    r"[\"']?\s*(?:[:=]|is)?\s*[\"']?)"
    r"(?=[^\s\"',;]*\d)(?=[^\s\"',;]*[A-Za-z])[^\s\"',;]{8,}",
}
_CALLED = re.compile(r"\b(?:phone|tel|call|cell|mobile|fax|whatsapp|sms|reach|dial|ring|text)", re.IGNORECASE)
_NEARBY = 40  # characters before bare digits that may say that they are a telephone's


class NotInstalled(RuntimeError):
    """A task's policy says `redact`, and what that takes is not installed: pip install 'stillroom[pii]'."""

    def __str__(self) -> str:
        return str(NotInstalled.__doc__)


def redact(pair: Pair, kinds: Sequence[Redacted]) -> None:
    """Replace what is of these kinds in the pair's messages and answers. Raises NotInstalled."""
    if not kinds:
        return
    replace = _Replacing(tuple(kinds))
    pair.messages = [replace.message(message) for message in pair.messages]
    pair.completion = replace.message(pair.completion)
    pair.rejected = None if pair.rejected is None else replace.message(pair.rejected)
    pair.redacted = len(replace.known)


def find(text: str, kinds: Sequence[Redacted]) -> list[tuple[int, int, Redacted]]:
    """(start, end, kind) of what is of these kinds, in the text's order, without overlaps. Raises NotInstalled."""
    found = []
    for kind in kinds:
        for recognizer in _recognizers(kind):
            for span in recognizer.analyze(text, recognizer.supported_entities, None):
                if span.score >= _LEAST[kind] and (kind != "phone" or _is_phone(text, span.start, span.end)):
                    found.append((ORDER.index(kind), span.start, span.end))
    taken: list[tuple[int, int, Redacted]] = []
    for rank, start, end in sorted(found, key=lambda span: (span[0], span[1] - span[2], span[1])):
        if all(end <= other[0] or start >= other[1] for other in taken):
            taken.append((start, end, ORDER[rank]))
    return sorted(taken)


class _Replacing:
    """One pair's replacements."""

    def __init__(self, kinds: tuple[Redacted, ...]) -> None:
        self.kinds = kinds
        self.known: dict[tuple[Redacted, str], str] = {}
        self._numbers: dict[Redacted, Iterator[int]] = {kind: count(1) for kind in kinds}

    def message(self, message: Message) -> Message:
        changed = dict(message)
        content = message.get("content")
        if isinstance(content, str):
            changed["content"] = self.text(content)
        elif isinstance(content, list):
            changed["content"] = [part | {"text": self.text(part["text"])} if "text" in part else part for part in content]
        if message.get("tool_calls"):
            changed["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return changed

    def text(self, text: str) -> str:
        done, parts = 0, []
        for start, end, kind in find(text, self.kinds):
            parts += [text[done:start], self._stand_in(kind, text[start:end])]
            done = end
        return "".join([*parts, text[done:]])

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return call | {"function": function | {"arguments": self.text(function.get("arguments", ""))}}

    def _stand_in(self, kind: Redacted, value: str) -> str:
        same = value.casefold() if kind in ("email", "ip", "key") else re.sub(r"\W", "", value).casefold()
        if (kind, same) not in self.known:
            self.known[kind, same] = _invent(kind, next(self._numbers[kind]))
        return self.known[kind, same]


def _invent(kind: Redacted, number: int) -> str:
    """A value of the kind's form that is set aside for examples."""
    if kind == "email":
        return f"person{number}@example.com"
    if kind == "phone":
        return f"+1 202 555 01{number % 100:02}"
    if kind == "iban":  # a bank code that no bank has; the check digits are right
        account = f"00000000{number:010}"
        return f"DE{98 - int(account + '131400') % 97:02}{account}"
    if kind == "card":
        digits = f"400000000{number:06}"
        doubled = sum(sum(divmod(int(d) * (2 - at % 2), 10)) for at, d in enumerate(digits))
        return digits + str(-doubled % 10)
    if kind == "ip":
        return f"192.0.2.{1 + (number - 1) % 254}"
    return f"000-00-{number:04}" if kind == "ssn" else f"redacted-key-{number:04}"


def _is_phone(text: str, start: int, end: int) -> bool:
    """Digits in a row are a number of many things, unless something says that it is a telephone's."""
    value = text[start:end]
    if not value.isdigit():
        return True
    before = text[max(0, start - _NEARBY) : start]
    return (len(before) > 0 and before.rstrip().endswith("+")) or _CALLED.search(before) is not None


@lru_cache(maxsize=len(ORDER))
def _recognizers(kind: Redacted) -> list[Any]:
    try:
        from presidio_analyzer import Pattern, PatternRecognizer
        from presidio_analyzer import predefined_recognizers as known
    except ModuleNotFoundError as missing:
        raise NotInstalled from missing

    class Email(known.EmailRecognizer):  # type: ignore[misc]
        """Presidio's would ask the network for the list of public suffixes, and let addresses at a house's own domains pass."""

        def validate_result(self, pattern_text: str) -> bool:
            return pattern_text.rpartition(".")[2].isalpha()  # not package@1.2.3

    if kind == "key":
        patterns = [Pattern(name, expression, 0.9) for name, expression in _KEYS.items()]
        return [PatternRecognizer("KEY", patterns=patterns, global_regex_flags=re.DOTALL)]
    if kind == "phone":
        return [known.PhoneRecognizer(leniency=1)]
    made: dict[str, Any] = {
        "email": Email, "iban": known.IbanRecognizer, "card": known.CreditCardRecognizer,
        "ssn": known.UsSsnRecognizer, "ip": known.IpRecognizer,
    }  # fmt: skip
    return [made[kind]()]
