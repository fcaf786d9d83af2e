"""Alembic's entry: runs on the connection that `store.migrate` hands over, or on STILLROOM_DATABASE_URL from the command line."""

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from sqlmodel import AutoString, SQLModel

from store import columns, tables
from store.session import Database
from store.settings import StoreSettings

metadata = SQLModel.metadata
assert tables.CaptureRow.__table__.metadata is metadata  # type: ignore[attr-defined]  # the import is what fills it


def render(kind: str, item: Any, _context: object) -> str | Literal[False]:
    """Types are written plainly, so that a migration never depends on what the product's code is by then."""
    if kind != "type":
        return False
    if isinstance(item, columns.UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if isinstance(item, columns.StateText):
        return "sa.String(32)"
    if isinstance(item, sa.JSON):
        return "sa.JSON()" if item is columns.OrderedJson else 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    if isinstance(item, AutoString):
        return f"sa.String({item.impl.length})"  # type: ignore[attr-defined]
    return False


def run(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_item=render,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with Database(StoreSettings().url).engine.begin() as opened:  # type: ignore[call-arg]
        run(opened)
