"""Bring the database to the schema this version knows. Every process calls it at its start; one of them does the work."""

import threading
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from store.session import Database

LOCK = 7_317_711  # any number, the same in every process
_ALEMBIC = threading.Lock()  # its `op` and `context` are the process's: two databases cannot be migrated at once


def upgrade(db: Database) -> None:
    """Apply what is missing, in one transaction. Processes that start together wait for one another."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    head = ScriptDirectory.from_config(config).get_current_head()
    with db.engine.begin() as connection:  # SQLite: BEGIN IMMEDIATE is the lock
        if not db.sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
        config.attributes["connection"] = connection
        with _ALEMBIC:
            command.upgrade(config, "head")
