"""Requests a minute: by the clock, by many processes, and with a file that is not what it should be."""

import hashlib
import logging
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.limits import MINUTE, Limits

SECOND = 1_000_000_000


class Clock:
    """A clock that a test moves. It begins where a machine that has run for a day stands."""

    def __init__(self) -> None:
        self.now = 86_400 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def digest(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def passed(limits: Limits, name: object, per_minute: int, tries: int) -> int:
    return sum(limits.take(digest(name), per_minute) == 0 for _ in range(tries))


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1001])
def test_a_minutes_requests_may_come_at_once_and_then_one_by_one(tmp_path: Path, clock: Clock, per_minute: int):
    limits = Limits(tmp_path, clock)
    assert passed(limits, "a", per_minute, per_minute + 5) == per_minute
    wait = limits.take(digest("a"), per_minute)
    assert wait == pytest.approx(60 / per_minute)
    clock.now += int(wait * SECOND) - 1
    assert limits.take(digest("a"), per_minute) > 0
    clock.now += 2
    assert passed(limits, "a", per_minute, 3) == 1
    clock.now += MINUTE
    assert passed(limits, "a", per_minute, per_minute + 5) == per_minute


def test_a_request_that_is_refused_is_not_counted(tmp_path: Path, clock: Clock):
    limits = Limits(tmp_path, clock)
    assert passed(limits, "a", 2, 100) == 2
    clock.now += 30 * SECOND
    assert passed(limits, "a", 2, 100) == 1


def test_keys_are_limited_each_for_itself(tmp_path: Path, clock: Clock):
    limits = Limits(tmp_path, clock)
    assert [passed(limits, name, 3, 5) for name in range(5000)] == [3] * 5000
    assert [passed(limits, name, 3, 1) for name in range(5000)] == [0] * 5000


@settings(max_examples=60, deadline=None)
@given(per_minute=st.integers(1, 20), gaps=st.lists(st.integers(0, 8 * SECOND), min_size=1, max_size=80))
def test_in_no_time_do_more_pass_than_the_rate_allows(tmp_path_factory, per_minute: int, gaps: list[int]):
    clock = Clock()
    limits = Limits(tmp_path_factory.mktemp("limits"), clock)
    at = []
    for gap in gaps:
        clock.now += gap
        if not limits.take(digest("a"), per_minute):
            at.append(clock.now)
    step = MINUTE // per_minute
    for first in range(len(at)):
        for last in range(first, len(at)):
            assert last - first + 1 <= per_minute + (at[last] - at[first]) // step


def test_a_client_that_keeps_to_its_rate_is_never_refused(tmp_path: Path, clock: Clock):
    limits = Limits(tmp_path, clock)
    for _ in range(500):
        assert limits.take(digest("a"), 7) == 0
        clock.now += MINUTE // 7


WORKER = """
import sys
from pathlib import Path
from proxy.limits import Limits

limits, digest = Limits(Path(sys.argv[1])), bytes.fromhex(sys.argv[2])
limits.take(b"x" * 32, 1)
print("ready", flush=True)
sys.stdin.readline()
print(sum(limits.take(digest, 500) == 0 for _ in range(1000)))
"""


def test_processes_count_together_and_a_restart_forgets_nothing(tmp_path: Path):
    line = [sys.executable, "-c", WORKER, str(tmp_path), digest("a").hex()]
    workers = [subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    passing = 0
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        passing += int(worker.communicate(timeout=30)[0])
    assert 500 <= passing <= 500 + 500 // 6  # ten seconds at most have gone by since the first
    assert passed(Limits(tmp_path), "a", 500, 500) < 250


def test_a_clock_that_begins_anew_costs_nothing(tmp_path: Path, clock: Clock):
    assert passed(Limits(tmp_path, clock), "a", 5, 9) == 5
    clock.now = 3 * SECOND  # the machine has been started again
    assert passed(Limits(tmp_path, clock), "a", 5, 9) == 5


@pytest.mark.parametrize("noise", [b"\xff", b"\x7f", b"\x01"])
def test_a_file_full_of_noise_limits_all_the_same(tmp_path: Path, clock: Clock, noise: bytes):
    (tmp_path / "limits.bin").write_bytes(noise * 600_000)
    limits = Limits(tmp_path, clock)
    assert [passed(limits, name, 3, 5) for name in range(100)] == [3] * 100


def test_a_rate_that_is_changed_holds_from_the_next_request_on(tmp_path: Path, clock: Clock):
    limits = Limits(tmp_path, clock)
    assert passed(limits, "a", 60, 30) == 30
    assert passed(limits, "a", 6, 30) == 3  # half a minute is taken, so half of the new rate is left
    assert passed(limits, "a", 600, 1000) == 0
    clock.now += MINUTE
    assert passed(limits, "a", 600, 1000) == 600


def test_more_busy_keys_than_there_are_places_still_pass(tmp_path: Path, clock: Clock):
    limits = Limits(tmp_path, clock)
    crowd = [digest(name)[:-1] + b"\0" for name in range(200)]  # all in one bucket
    assert all(limits.take(each, 10) == 0 for each in crowd)
    assert (tmp_path / "limits.bin").stat().st_size == 256 * 64 * 32


def test_the_file_is_its_owners(tmp_path: Path):
    Limits(tmp_path / "run").take(digest("a"), 1)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run" / "limits.bin").stat().st_mode & 0o777 == 0o600


def test_without_a_limited_key_there_is_no_file(tmp_path: Path):
    Limits(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_there_can_be_no_file_a_worker_limits_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "run").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert passed(Limits(tmp_path / "run"), "a", 5, 50) == 5
    [record] = caplog.records
    assert "each worker limits for itself" in record.getMessage()


def test_what_is_waited_for_grows_shorter(tmp_path: Path, clock: Clock):
    limits = Limits(tmp_path, clock)
    limits.take(digest("a"), 1)
    waits = []
    for _ in range(6):
        waits.append(limits.take(digest("a"), 1))
        clock.now += 10 * SECOND
    assert all(later == pytest.approx(sooner - 10) for sooner, later in pairwise(waits))
    assert limits.take(digest("a"), 1) == 0
