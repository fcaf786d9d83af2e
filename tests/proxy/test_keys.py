"""Who may ask: stillroom's own keys, in whatever header they come, and nobody else's with them."""

import hashlib
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.errors import Refusal
from proxy.head import Head
from proxy.keys import Gate
from store.keys import KeyView
from store.states import BudgetPeriod

SECRET = b"sk-stillroom-" + b"x" * 43
OTHER = [(b"host", b"h"), (b"authorization", b"Bearer sk-alice"), (b"user-agent", b"x")]


def view(**rules: Any) -> KeyView:
    plain = {"tasks": frozenset(), "budget_usd": None, "budget_period": BudgetPeriod.TOTAL, "spent_usd": 0.0}
    return KeyView(**{"id": "key_1", "label": "ci", **plain, "requests_per_minute": None, "expires_at": None, **rules})


def known(**rules: Any) -> dict[bytes, KeyView]:
    return {hashlib.sha256(SECRET).digest(): view(**rules)}


def bearer(secret: bytes = SECRET) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"h"), (b"authorization", b"Bearer " + secret)]


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(False, tmp_path / "run")


def refused(gate: Gate, headers: list[tuple[bytes, bytes]], keys: dict[bytes, KeyView] | None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        gate.admit(Head(headers), keys)
    assert b"xxxx" not in caught.value.body
    return caught.value


def error(refusal: Refusal) -> dict[str, Any]:
    return dict(orjson.loads(refusal.body)["error"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer " + SECRET),
        (b"authorization", b"bearer  " + SECRET + b" "),
        (b"authorization", b"Bearer\t" + SECRET),
        (b"authorization", SECRET),
        (b"api-key", SECRET),
        (b"x-api-key", SECRET),
    ],
)
def test_a_key_of_ours_is_known_wherever_a_key_can_be(gate: Gate, name: bytes, value: bytes):
    keys = known()
    assert gate.admit(Head([(b"host", b"h"), (name, value)]), keys) is next(iter(keys.values()))


def test_a_key_of_ours_counts_also_behind_anothers(gate: Gate):
    found = gate.admit(Head([*OTHER, (b"api-key", SECRET)]), known())
    assert found is not None
    assert found.id == "key_1"


@pytest.mark.parametrize("headers", [OTHER, [], [(b"authorization", b"")], [(b"x-note", SECRET)]])
@pytest.mark.parametrize("keys", [known(), {}, None])
def test_another_key_or_none_is_passed_through(gate: Gate, headers: Any, keys: Any):
    assert gate.admit(Head(headers), keys) is None


@pytest.mark.parametrize("headers", [OTHER, [], [(b"authorization", b"Basic " + SECRET[3:])]])
def test_where_a_key_of_ours_is_required_nothing_else_gets_in(tmp_path: Path, headers: Any):
    gate = Gate(True, tmp_path)
    answer = refused(gate, headers, known())
    assert (answer.status, error(answer)["code"]) == (401, "invalid_api_key")
    assert "ask its operator" in answer.message
    assert gate.admit(Head(bearer()), known()) is not None


@pytest.mark.parametrize(
    "value",
    [b"Bearer sk-stillroom-", b"Bearer " + SECRET + b"x", b'Bearer "' + SECRET + b'"', b"Bearer " + SECRET + b", x", b"x" + SECRET],
)
def test_what_looks_like_ours_and_is_not_known_goes_nowhere(gate: Gate, value: bytes):
    answer = refused(gate, [(b"authorization", value)], known())
    assert answer.status == 401
    assert error(answer) == {
        "message": answer.message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key",
    }  # fmt: skip


def test_a_key_in_a_websockets_subprotocol_goes_nowhere(gate: Gate):
    header = (b"sec-websocket-protocol", b"realtime, openai-insecure-api-key." + SECRET)
    assert "Authorization: Bearer" in refused(gate, [header], known()).message
    assert gate.admit(Head([(b"sec-websocket-protocol", b"realtime, openai-insecure-api-key.sk-alice")]), known()) is None


def test_an_expired_key_is_refused(gate: Gate):
    assert gate.admit(Head(bearer()), known(expires_at=time.time() + 5)) is not None
    answer = refused(gate, bearer(), known(expires_at=time.time() - 1))
    assert (answer.status, error(answer)["code"]) == (401, "invalid_api_key")
    assert "'ci' has expired" in answer.message


def test_before_the_keys_are_read_a_client_is_told_to_come_again(gate: Gate):
    answer = refused(gate, bearer(), None)
    assert (answer.status, error(answer)["type"], list(answer.headers)) == (503, "server_error", [(b"retry-after", b"1")])


@pytest.mark.parametrize(
    ("period", "says"),
    [(BudgetPeriod.TOTAL, "has spent its budget of $5.00."), (BudgetPeriod.MONTH, "budget of $5.00 for this month")],
)
def test_a_key_that_has_spent_its_budget_is_refused_as_openai_refuses(gate: Gate, period: BudgetPeriod, says: str):
    assert gate.admit(Head(bearer()), known(budget_usd=5.0, spent_usd=4.99)) is not None
    answer = refused(gate, bearer(), known(budget_usd=5.0, spent_usd=5.0, budget_period=period))
    assert (answer.status, error(answer)["type"], error(answer)["code"]) == (429, "insufficient_quota", "insufficient_quota")
    assert says in answer.message
    assert (b"x-should-retry", b"false") in answer.headers
    assert refused(gate, bearer(), known(budget_usd=0.0)).status == 429


def test_a_key_beyond_its_rate_is_told_when_to_come_again(gate: Gate):
    keys = known(requests_per_minute=2)
    assert [gate.admit(Head(bearer()), keys) is not None for _ in range(2)] == [True, True]
    answer = refused(gate, bearer(), keys)
    headers = dict(answer.headers)
    assert (answer.status, error(answer)["type"], error(answer)["code"]) == (429, "requests", "rate_limit_exceeded")
    assert 29 <= int(headers[b"retry-after"]) <= 30
    assert 29_000 <= int(headers[b"retry-after-ms"]) <= 30_000
    assert headers[b"x-ratelimit-limit-requests"] == b"2"


def test_what_is_refused_for_another_reason_does_not_count_as_a_request(gate: Gate):
    for _ in range(5):
        refused(gate, bearer(), known(requests_per_minute=1, budget_usd=0.0))
    assert gate.admit(Head(bearer()), known(requests_per_minute=1)) is not None


def test_the_workers_of_a_machine_count_together(tmp_path: Path):
    keys = known(requests_per_minute=3)
    gates = [Gate(False, tmp_path) for _ in range(3)]
    assert all(gate.admit(Head(bearer()), keys) for gate in gates)
    assert [refused(gate, bearer(), keys).status for gate in gates] == [429] * 3


def test_a_key_may_use_the_tasks_it_is_for(gate: Gate):
    key = view(tasks=frozenset({"task_1"}))
    gate.permit(key, "task_1", "triage")
    gate.permit(view(), "task_2", "other")
    gate.permit(view(), None)
    gate.permit(None, "task_2", "other")
    for task_id, name, says in (("task_2", "other", "the task 'other'"), ("task_2", None, "'task_2'"), (None, None, "no task")):
        with pytest.raises(Refusal, match=says) as caught:
            gate.permit(key, task_id, name)
        assert (caught.value.status, caught.value.code) == (403, "task_not_allowed")


def test_no_key_is_kept_in_the_clear(gate: Gate):
    keys = known(requests_per_minute=5)
    gate.admit(Head(bearer()), keys)
    assert SECRET.decode() not in repr(vars(gate)) + repr(keys)
