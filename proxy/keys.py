"""Who may ask: stillroom's own keys, known by their SHA-256. Any other key is the teacher's to judge."""

import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path

from proxy.errors import Refusal
from proxy.head import Head
from proxy.headers import CREDENTIALS, Headers
from proxy.limits import Limits
from store.keys import PREFIX, KeyView
from store.states import BudgetPeriod

_OURS = PREFIX.encode()
_SUBPROTOCOL = b"sec-websocket-protocol"  # where browsers put the key of a realtime session
_PLACES = frozenset({*CREDENTIALS, _SUBPROTOCOL})
_NO_RETRY = ((b"x-should-retry", b"false"),)  # OpenAI's SDKs would try a 429 again


class Gate:
    """Lets requests in by their key. `require`: only with a key of stillroom's own; `root`: the folder of the rate limits' file.

    What a key has spent is known about a second late: the requests of that second may go beyond the budget.
    """

    def __init__(self, require: bool, root: Path) -> None:
        self._require = require
        self._limits = Limits(root)

    def admit(self, head: Head, keys: Mapping[bytes, KeyView] | None) -> KeyView | None:
        """The virtual key of a request; None if the client's own key is to be passed through. `keys`: None if not read yet.

        Counts the request towards the key's rate limit. Raises Refusal 401, 429, and 503 while the keys are not known.
        """
        try:
            digest = head.derived[Gate]
        except KeyError:
            digest = head.derived[Gate] = _digest(head.headers)
        if digest is not None:
            return self._known(digest, keys)
        if self._require:
            raise _unauthorized(f"This proxy wants a key of its own ({PREFIX}...): ask its operator for one.")
        return None

    def permit(self, key: KeyView | None, task_id: str | None, task_name: str | None = None) -> None:
        """Raises Refusal 403 if the key may not use this task. `task_id` None: a request that belongs to no task."""
        if key is not None and key.tasks and task_id not in key.tasks:
            what = f"the task {task_name or task_id!r}" if task_id else "what belongs to no task"
            says = f"The key {key.label!r} may not be used for {what}: its operator has limited it to other tasks."
            raise Refusal(403, "task_not_allowed", says)

    def _known(self, digest: bytes, keys: Mapping[bytes, KeyView] | None) -> KeyView:
        if keys is None:
            says = "stillroom has not yet read its keys from the database: send the request again."
            raise Refusal(503, "keys_unknown", says, headers=((b"retry-after", b"1"),))
        key = keys.get(digest)
        if key is None:
            raise _unauthorized("This key of stillroom's is not known, or was revoked: ask the proxy's operator for another.")
        if key.expires_at is not None and key.expires_at <= time.time():
            raise _unauthorized(f"The key {key.label!r} has expired: ask the proxy's operator for another.")
        if key.budget_usd is not None and key.spent_usd >= key.budget_usd:
            raise _spent(key)
        if (rate := key.requests_per_minute) is not None and (wait := self._limits.take(digest, rate)):
            raise _too_fast(key, rate, wait)
        return key


def _digest(headers: Headers) -> bytes | None:
    """SHA-256 of the virtual key among these headers; None if there is none. Raises Refusal."""
    for name, value in headers:
        if name in _PLACES and _OURS in value:
            if name == _SUBPROTOCOL:
                raise _unauthorized("A key of stillroom's own is sent as `Authorization: Bearer KEY`, not as a subprotocol.")
            return hashlib.sha256(value.split()[-1]).digest()
    return None


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, "invalid_api_key", message, headers=((b"www-authenticate", b"Bearer"),))


def _spent(key: KeyView) -> Refusal:
    monthly = key.budget_period == BudgetPeriod.MONTH
    says = f"The key {key.label!r} has spent its budget of ${key.budget_usd:.2f}{' for this month (UTC)' if monthly else ''}."
    return Refusal(429, "insufficient_quota", says, kind="insufficient_quota", headers=_NO_RETRY)


def _too_fast(key: KeyView, rate: int, seconds: float) -> Refusal:
    says = f"The key {key.label!r} may make {rate} requests a minute. Try again in {seconds:.1f} s."
    headers = (
        (b"retry-after", b"%d" % math.ceil(seconds)),
        (b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)),
        (b"x-ratelimit-limit-requests", b"%d" % rate),
    )
    return Refusal(429, "rate_limit_exceeded", says, kind="requests", headers=headers)
