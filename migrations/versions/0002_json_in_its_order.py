"""messages, tools and answers keep the order of their keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS = {
    "reviews": ("correction",),
    "pairs": ("messages", "tools", "response_format", "completion"),
    "evaluation_items": ("t0", "t1", "t2", "s"),
}


def upgrade() -> None:
    _alter(postgresql.JSONB(), sa.JSON())


def downgrade() -> None:
    _alter(sa.JSON(), postgresql.JSONB())


def _alter(before: sa.types.TypeEngine[object], after: sa.types.TypeEngine[object]) -> None:
    """SQLite keeps JSON as text already."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in COLUMNS.items():
        for column in columns:
            kind = after.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
            op.alter_column(table, column, existing_type=before, type_=after, postgresql_using=f"{column}::{kind}")
