"""what a student was shown, and what must be trained again."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("adapters", sa.Column("files", json, nullable=False, server_default="{}"))
    op.add_column("adapters", sa.Column("transform", sa.JSON(), nullable=True))
    op.add_column("adapters", sa.Column("stale_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("pairs", sa.Column("capture_sha256", sa.String(64), nullable=False, server_default=""))
    op.add_column("dictionaries", sa.Column("withdrawn", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("dictionaries", "withdrawn")
    op.drop_column("pairs", "capture_sha256")
    op.drop_column("adapters", "stale_since")
    op.drop_column("adapters", "transform")
    op.drop_column("adapters", "files")
