"""Single flight: one holder, taken over when it lapses, and told so."""

import threading
import time

import pytest

from store import leases
from store.leases import LeaseLost
from store.session import Database
from store.tables import Lease

LONG, SHORT = 60.0, 0.2


def take(db: Database, holder: str, seconds: float = LONG, name: str = "turn") -> leases.Held | None:
    with db.begin() as session:
        return leases.acquire(session, name, holder, seconds)


def test_one_holds_it_and_the_other_does_not(db: Database) -> None:
    assert take(db, "a") is not None
    assert take(db, "b") is None
    assert take(db, "b", name="another turn") is not None


def test_it_is_free_again_when_it_is_released(db: Database) -> None:
    held = take(db, "a")
    assert held is not None
    with db.begin() as session:
        leases.release(session, held)
    assert take(db, "b") is not None


def test_it_lapses_and_the_fence_grows(db: Database) -> None:
    first = take(db, "a", SHORT)
    time.sleep(SHORT * 1.5)
    second = take(db, "b")
    assert first is not None
    assert second is not None
    assert second.fence > first.fence


def test_who_was_replaced_is_told_at_the_next_renewal(db: Database) -> None:
    first = take(db, "a", SHORT)
    assert first is not None
    time.sleep(SHORT * 1.5)
    take(db, "b")
    with pytest.raises(LeaseLost), db.begin() as session:
        leases.renew(session, first, LONG)


def test_who_was_replaced_does_not_release_the_others_lease(db: Database) -> None:
    first = take(db, "a", SHORT)
    assert first is not None
    time.sleep(SHORT * 1.5)
    take(db, "b")
    with db.begin() as session:
        leases.release(session, first)
    assert take(db, "c") is None


def test_a_renewed_lease_outlives_its_first_term(db: Database) -> None:
    held = take(db, "a", SHORT)
    assert held is not None
    with db.begin() as session:
        leases.renew(session, held, LONG)
    time.sleep(SHORT * 1.5)
    assert take(db, "b") is None


def test_of_many_that_race_exactly_one_wins(db: Database) -> None:
    won: list[str] = []
    together = threading.Barrier(8)

    def race(holder: str) -> None:
        together.wait()
        if take(db, holder) is not None:
            won.append(holder)

    threads = [threading.Thread(target=race, args=(f"holder {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_of_many_that_race_for_a_lapsed_lease_exactly_one_wins(db: Database) -> None:
    take(db, "dead", 0.0)
    won: list[str] = []
    together = threading.Barrier(8)

    def race(holder: str) -> None:
        together.wait()
        if take(db, holder) is not None:
            won.append(holder)

    threads = [threading.Thread(target=race, args=(f"holder {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_held_lease_is_renewed_while_the_block_runs_and_released_after_it(db: Database) -> None:
    with leases.hold(db, "turn", "a", 1.0) as check:
        assert check is not None
        time.sleep(1.5)
        check()
        assert take(db, "b") is None
    assert take(db, "b") is not None


def test_a_block_that_finds_the_lease_taken_gets_none(db: Database) -> None:
    take(db, "a")
    with leases.hold(db, "turn", "b", LONG) as check:
        assert check is None


def test_a_block_whose_lease_was_taken_over_is_told_before_it_writes(db: Database) -> None:
    with leases.hold(db, "turn", "a", 0.4) as check:
        assert check is not None
        with db.begin() as session:  # as another process does after this one slept through its term
            lease = session.get_one(Lease, "turn")
            lease.holder, lease.fence = "b", lease.fence + 1
        time.sleep(0.3)
        with pytest.raises(LeaseLost):
            check()


def test_a_block_that_raises_lets_go(db: Database) -> None:
    with pytest.raises(RuntimeError), leases.hold(db, "turn", "a", LONG):
        raise RuntimeError
    assert take(db, "b") is not None
