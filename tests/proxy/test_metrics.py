"""What a process counts, read back from its snapshot."""

import timeit
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from proxy.metrics import BOUNDS, MAX_TASKS, METRICS, OTHER, Counters, Kind, reason
from proxy.request import Wish
from proxy.routing import choose
from store.routes import Table, Target
from store.states import Server

CHAT = "/v1/chat/completions"


def value(counters: Counters, name: str, *labels: str) -> Any:
    """What a snapshot has under a metric and labels, after its way through a file."""
    snapshot = orjson.loads(orjson.dumps(counters.snapshot()))
    return {tuple(key): value for key, value in snapshot.get(name, ())}.get(labels)


def test_an_exchange_is_counted_by_task_server_endpoint_and_code() -> None:
    counters = Counters()
    for code in (200, 200, 429):
        counters.exchange("sort", Server.TEACHER, CHAT, code, 1.5, 0.2)
    counters.exchange("sort", Server.STUDENT, "/v1/responses", 200, 0.3, 0.004)
    assert value(counters, "stillroom_requests_total", "sort", "teacher", CHAT, "200") == 2
    assert value(counters, "stillroom_requests_total", "sort", "teacher", CHAT, "429") == 1
    assert value(counters, "stillroom_requests_total", "sort", "student", "/v1/responses", "200") == 1


def test_times_fall_into_the_bucket_that_is_not_below_them_and_a_time_that_is_not_there_into_none() -> None:
    counters = Counters()
    for seconds, first_byte in ((0.005, None), (0.0051, 0.001), (600.0, 2.0), (601.0, 2.0)):
        counters.exchange("sort", "teacher", CHAT, 200, seconds, first_byte)
    *buckets, total = value(counters, "stillroom_request_seconds", "sort", "teacher")
    assert (buckets[0], buckets[1], buckets[-2], buckets[-1]) == (1, 1, 1, 1)
    assert (len(buckets), total) == (len(BOUNDS) + 1, pytest.approx(1201.0101))
    *buckets, total = value(counters, "stillroom_first_byte_seconds", "sort", "teacher")
    assert (buckets[0], buckets[BOUNDS.index(2.5)], sum(buckets), total) == (1, 2, 3, pytest.approx(4.001))


def test_tasks_beyond_a_thousand_are_counted_together_and_nothing_is_lost() -> None:
    counters = Counters()
    for number in range(MAX_TASKS + 50):
        counters.exchange(f"t{number}", "teacher", CHAT, 200, 0.1, 0.1, "student: the breaker is open")
        counters.stored(f"t{number}", "teacher", None, 10, 1, None)
    counters.exchange("t0", "teacher", CHAT, 200, 0.1, 0.1)
    requests = {labels[0]: count for labels, count in counters.snapshot()["stillroom_requests_total"]}
    assert (len(requests), requests["t0"], requests[OTHER]) == (MAX_TASKS + 1, 2, 50)
    assert sum(value(counters, "stillroom_request_seconds", OTHER, "teacher")[:-1]) == 50
    assert value(counters, "stillroom_fallbacks_total", OTHER, "breaker") == 50
    assert value(counters, "stillroom_tokens_total", OTHER, "teacher", "prompt") == 500


def test_no_client_and_no_teacher_can_make_up_labels_without_end() -> None:
    counters = Counters()
    for number in range(2000):
        counters.exchange("sort", "teacher", f"/v1/{number}", 200 + number, 0.1, None)
        counters.passed(f"/v1/made-up-{number}/x", 200 + number)
        counters.refused(f"code-{number}")
    sizes = {name: len(values) for name, values in counters.snapshot().items()}
    assert sizes["stillroom_requests_total"] < 80
    assert sizes["stillroom_passthrough_total"] < 80
    assert sizes["stillroom_refused_total"] <= 101
    assert value(counters, "stillroom_requests_total", "sort", "teacher", OTHER, "7xx") == 100
    assert value(counters, "stillroom_requests_total", "sort", "teacher", OTHER, OTHER) == 1200


def test_a_request_passed_through_counts_for_its_first_path_segment() -> None:
    counters = Counters()
    for path in ("/v1/files", "/v1/files/file-1/content", "/v1/models?limit=1", "/v1/", "/v1/nothing"):
        counters.passed(path, 200)
    counters.passed("/v1/realtime", 101)
    found = {tuple(labels): count for labels, count in counters.snapshot()["stillroom_passthrough_total"]}
    assert found == {("files", "200"): 2, ("models", "200"): 1, (OTHER, "200"): 2, ("realtime", "101"): 1}


def why(
    target: Target | None, request: dict[str, Any], *, wish: Wish = Wish.AUTO, trusted: bool = True, loaded: Sequence[str] = ()
) -> str:
    """The text of routing's own, for a reason not to ask the student."""
    table = Table({"task_1": target} if target else {}, ("http://e",), frozenset(loaded))
    return choose(table, "task_1", request, wish, trusted=lambda: trusted, draw=1.0).why or ""


def test_each_reason_that_routing_gives_has_a_label() -> None:
    target, have = Target("task_1@v1", 0.0), ["task_1@v1"]
    assert reason(why(None, {}, wish=Wish.STUDENT)) == "no_student"
    assert reason(why(target, {"n": 2}, loaded=have)) == "beyond"
    assert reason(why(target, {"audio": {}}, loaded=have)) == "beyond"
    assert reason(why(target, {})) == "no_engine"
    assert reason(why(target, {}, loaded=have, trusted=False)) == "unknown_key"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("student: the breaker is open", "breaker"),
        ("student: no answer within 1.5 s", "timeout"),
        ("student: 127.0.0.1:8000 was silent for too long", "timeout"),
        ("student: cannot connect to 127.0.0.1:8000: Connection refused", "unreachable"),
        ("student: the connection to 127.0.0.1:8000 was lost", "broken"),
        ("student: its stream ended without [DONE]", "broken"),
        ("student: an event of its stream is no JSON", "unreadable"),
        ("student: its answer cannot be used: out of memory", "unreadable"),
        ("student: it answered 503", "status"),
        ("student: its finish_reason is length", "unfit"),
        ("student: its answer is not the JSON that response_format asks for", "unfit"),
        ("student: stillroom failed on it (KeyError), its log says why", "internal"),
        ("words that nobody has foreseen", OTHER),
    ],
)
def test_each_reason_that_the_student_gives_has_a_label(text: str, label: str) -> None:
    assert reason(text) == label


def test_what_a_student_answered_is_saved_and_what_a_teacher_answered_is_spent() -> None:
    counters = Counters()
    counters.stored("sort", Server.TEACHER, "azure", 100, 10, 0.25)
    counters.stored("sort", Server.TEACHER, None, 100, 10, 0.5)
    counters.stored("sort", Server.STUDENT, None, 300, None, 0.75)
    assert value(counters, "stillroom_stored_total", "sort", "teacher") == 2
    assert value(counters, "stillroom_tokens_total", "sort", "teacher", "prompt") == 200
    assert value(counters, "stillroom_tokens_total", "sort", "student", "prompt") == 300
    assert value(counters, "stillroom_tokens_total", "sort", "student", "completion") is None
    assert value(counters, "stillroom_saved_tokens_total", "sort", "prompt") == 300
    assert value(counters, "stillroom_cost_dollars_total", "sort", "azure") == 0.25
    assert value(counters, "stillroom_cost_dollars_total", "sort", "default") == 0.5
    assert value(counters, "stillroom_saved_dollars_total", "sort") == 0.75


def test_a_breaker_is_known_by_its_engines_address_without_a_password_and_only_as_long_as_there_is_an_engine() -> None:
    counters = Counters()
    counters.breakers({"http://user:secret@10.0.0.7:8000": "open", "http://10.0.0.8:8000": "closed"})
    assert value(counters, "stillroom_breaker_state", "http://10.0.0.7:8000") == 2
    assert b"secret" not in orjson.dumps(counters.snapshot())
    counters.breakers({"http://10.0.0.8:8000": "half-open"})
    assert counters.snapshot()["stillroom_breaker_state"] == [(["http://10.0.0.8:8000"], 1)]


def test_what_can_only_go_up_by_one_thing_is_there_from_the_start() -> None:
    counters = Counters()
    assert value(counters, "stillroom_uncaptured_total") == value(counters, "stillroom_rejected_total") == 0
    counters.uncaptured()
    counters.rejected()
    assert value(counters, "stillroom_uncaptured_total") == value(counters, "stillroom_rejected_total") == 1


def test_a_snapshot_does_not_change_with_what_is_counted_later() -> None:
    counters = Counters()
    counters.exchange("sort", "teacher", CHAT, 200, 0.1, 0.1)
    before = counters.snapshot()
    kept = orjson.dumps(before)
    counters.exchange("sort", "teacher", CHAT, 200, 0.1, 0.1)
    counters.uncaptured()
    assert orjson.dumps(before) == kept


def test_names_are_as_prometheus_wants_them() -> None:
    for metric in METRICS:
        assert metric.name.startswith("stillroom_")
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.name.endswith("_seconds") == (metric.kind in (Kind.HISTOGRAM, Kind.AGE))
        assert metric.help.endswith(".") or metric.kind in (Kind.MAX, Kind.MIN, Kind.AGE)


def test_counting_an_exchange_takes_a_few_microseconds() -> None:
    counters = Counters()

    def count() -> None:
        counters.exchange("sort", Server.TEACHER, CHAT, 200, 1.5, 0.2, "no engine has task_1@v1 loaded")

    assert min(timeit.repeat(count, number=5000, repeat=7)) / 5000 < 5e-6
