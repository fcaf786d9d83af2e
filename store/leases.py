"""Single flight: one holder a name, until it lets go or stops renewing.

A lease is a row, not a session lock: it outlives connections, passes transaction poolers, and its fencing number tells a
holder that was paused too long that it has been replaced.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel import Session

from store.columns import now
from store.session import Database
from store.tables import Lease

log = logging.getLogger("stillroom.store")


class LeaseLost(Exception):
    """Another holder has taken the lease over; whoever held it must stop without writing."""


@dataclass(frozen=True)
class Held:
    name: str
    holder: str
    fence: int


def acquire(session: Session, name: str, holder: str, seconds: float) -> Held | None:
    """Take the lease if it is free or lapsed; None while somebody else holds it."""
    lease = session.get(Lease, name, with_for_update=True)
    if lease is None:
        lease = Lease(name=name, holder=holder, fence=0, expires_at=now())
    elif lease.expires_at > now() and lease.holder != holder:
        return None
    lease.holder, lease.fence, lease.expires_at = holder, lease.fence + 1, now() + timedelta(seconds=seconds)
    try:
        with session.begin_nested():
            session.add(lease)
    except IntegrityError:  # two took a lease nobody ever held, at the same time: the other one has it
        return None
    return Held(name, holder, lease.fence)


def renew(session: Session, held: Held, seconds: float) -> None:
    """Keep it for `seconds` more. Raises LeaseLost if it has another holder or fence by now."""
    lease = session.get(Lease, held.name, with_for_update=True)
    if lease is None or lease.fence != held.fence:
        raise LeaseLost(f"lease {held.name} was taken over")
    lease.expires_at = now() + timedelta(seconds=seconds)
    session.add(lease)


def release(session: Session, held: Held) -> None:
    """Let go. Nothing happens if it was lost before."""
    lease = session.get(Lease, held.name, with_for_update=True)
    if lease is not None and lease.fence == held.fence:
        lease.expires_at = now()
        session.add(lease)


def this_thread() -> str:
    """A name for this thread among all that may want a lease: a holder is granted its own again."""
    return f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"


@contextmanager
def hold(db: Database, name: str, holder: str, seconds: float) -> Iterator[Callable[[], None] | None]:
    """Hold a lease for as long as the block runs, renewed by a thread; None if somebody else has it.

    Yields a function to call before each write: it raises LeaseLost once the lease has been taken over, or has not been
    renewed in time (the database was away), so that two holders never both go on.
    """
    with db.begin() as session:
        held = acquire(session, name, holder, seconds)
    if held is None:
        yield None
        return
    stop, lost = threading.Event(), threading.Event()
    renewed = [now()]

    def keep() -> None:
        while not stop.wait(seconds / 4):
            try:
                with db.begin() as session:
                    renew(session, held, seconds)
                renewed[0] = now()
            except LeaseLost:
                lost.set()
                return
            except DBAPIError as error:
                log.warning("lease %s could not be renewed: %s", name, error)

    def check() -> None:
        if lost.is_set() or now() - renewed[0] > timedelta(seconds=seconds):
            raise LeaseLost(f"lease {name} was lost")

    keeper = threading.Thread(target=keep, name=f"lease {name}", daemon=True)
    keeper.start()
    try:
        yield check
    finally:
        stop.set()
        keeper.join()
        with db.begin() as session:
            release(session, held)
