"""Ids are in the order of their making, and never made twice."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from store import ids


def test_each_is_greater_than_the_one_before_also_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [ids.new("x") for _ in range(10_000)]
    earlier = time.time_ns() - 3_600_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: earlier)
    made += [ids.new("x") for _ in range(1000)]
    assert made == sorted(set(made))
    assert {len(each) for each in made} == {28}


def test_threads_and_a_child_make_others() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = [each for some in pool.map(lambda _: [ids.new("x") for _ in range(2000)], range(8)) for each in some]
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writing, "\n".join(ids.new("x") for _ in range(1000)).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as told:
        made += told.read().split()
    made += [ids.new("x") for _ in range(1000)]
    assert len(made) == len(set(made)) == 18_000
