from proxy.breaker import FAILURES, SECONDS, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.admit()
        breaker.fail()
    return breaker, clock


def test_it_opens_only_after_failures_in_a_row():
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.fail()
        breaker.succeed()
    assert breaker.state == "closed"
    assert opened()[0].state == "open"
    assert not opened()[0].admit()


def test_after_its_time_one_at_a_time_may_try():
    breaker, clock = opened()
    clock.now += SECONDS
    assert breaker.state == "half-open"
    assert [breaker.admit(), breaker.admit()] == [True, False]
    breaker.release()
    assert [breaker.admit(), breaker.admit()] == [True, False]


def test_a_try_that_succeeds_closes_it_and_one_that_fails_opens_it_again():
    breaker, clock = opened()
    clock.now += SECONDS
    assert breaker.admit()
    breaker.fail()
    assert not breaker.admit()
    clock.now += SECONDS
    assert breaker.admit()
    breaker.succeed()
    assert [breaker.admit(), breaker.admit()] == [True, True]
