"""Caps: how many rows one user may contribute to what a student learns from, so that nobody owns it. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median

USUAL = 3  # times what a usual user gives: who gives no more is not capped
FEW = 20  # voices: in fewer, one that is louder may be the one that works


def limits(users: Mapping[str, int], others: Sequence[int], share: float, at_least: int) -> dict[str, int]:
    """By user who has more rows than that: the rows to keep of theirs.

    users: rows by named user. others: rows of each cluster whose sender is not known; each counts as a voice and is never capped.
    Who gives more than three times what a usual voice gives is held to `share` of the training set, however many such there are.
    Among fewer than 20 voices they keep as much as a usual voice gives, and more while fewer than `at_least` rows were left.
    """
    voices = sorted([*users.values(), *others])
    if not users:
        return {}
    usual = median(voices)
    loud = {user: rows for user, rows in users.items() if rows > USUAL * usual}
    base = sum(voices) - sum(loud.values())
    limit = int(share / (1 - share) * base) if share < 1 else sum(voices)
    if len(voices) < FEW:
        limit = max(limit, int(usual))
        while base + sum(min(rows, limit) for rows in loud.values()) < min(at_least, sum(voices)):
            limit += 1
    return {user: limit for user, rows in loud.items() if rows > limit}
