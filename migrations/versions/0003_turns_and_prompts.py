"""the end of a task's last turn, an evaluation's vain attempts, a pair's prompt by hash, an engine's context."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("turned_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("evaluations", sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("pairs", sa.Column("prompt_hash", sa.String(64), nullable=False, server_default=""))
    op.add_column("engines", sa.Column("context", sa.Integer(), nullable=True))
    op.create_index("pairs_by_prompt", "pairs", ["task_id", "prompt_hash"])
    op.create_index("pairs_by_conversation", "pairs", ["task_id", "conversation"])


def downgrade() -> None:
    op.drop_index("pairs_by_conversation", "pairs")
    op.drop_index("pairs_by_prompt", "pairs")
    op.drop_column("engines", "context")
    op.drop_column("pairs", "prompt_hash")
    op.drop_column("evaluations", "attempts")
    op.drop_column("tasks", "turned_at")
