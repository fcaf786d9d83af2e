"""Exchanges from the spool as rows: the one place where the proxy writes captures."""

from collections.abc import Sequence

from sqlmodel import col, select

from proxy import rows
from proxy.journal import Logged
from store import tasks
from store.session import Database
from store.tables import Capture


def insert(db: Database, batch: Sequence[Logged]) -> None:
    """Write the captures that are not there yet, and the tasks they are the first of, in one transaction."""
    built = [rows.build(logged) for logged in batch]
    with db.begin() as session:
        ids = [capture.id for _, capture in built]
        known = set(session.exec(select(Capture.id).where(col(Capture.id).in_(ids))))
        new = [(identity, capture) for identity, capture in built if capture.id not in known]
        for identity in {identity.id: identity for identity, _ in new}.values():
            tasks.ensure(session, identity)
        session.add_all(capture for _, capture in new)
