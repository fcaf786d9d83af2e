"""virtual keys; which key a capture came under, which teacher answered, what that cost."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "virtual_keys",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("last4", sa.String(4), nullable=False),
        sa.Column("label", sa.String(100), nullable=False),
        sa.Column("tasks", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("budget_usd", sa.Float(), nullable=True),
        sa.Column("budget_period", sa.String(32), nullable=False),
        sa.Column("spent_usd", sa.Float(), nullable=False),
        sa.Column("spent_in", sa.String(7), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sha256"),
    )
    in_use = sa.text("revoked_at IS NULL")
    op.create_index("virtual_keys_by_label", "virtual_keys", ["label"], unique=True, sqlite_where=in_use, postgresql_where=in_use)
    op.create_index(op.f("ix_virtual_keys_created_at"), "virtual_keys", ["created_at"])
    op.add_column("capture_kinds", sa.Column("key_id", sa.String(40), nullable=True))
    op.add_column("capture_kinds", sa.Column("teacher", sa.String(100), nullable=True))
    op.add_column("captures", sa.Column("cost_usd", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("captures", "cost_usd")
    op.drop_column("capture_kinds", "teacher")
    op.drop_column("capture_kinds", "key_id")
    op.drop_table("virtual_keys")
