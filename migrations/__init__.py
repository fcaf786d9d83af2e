"""Alembic's migrations; `store.migrate.upgrade` applies them at start."""
