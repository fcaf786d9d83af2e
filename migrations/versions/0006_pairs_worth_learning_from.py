"""pairs know their cluster and who contributed them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, length in (("cluster", 64), ("contributor", 64), ("left_out", 200)):
        op.add_column("pairs", sa.Column(name, sa.String(length), nullable=False, server_default=""))
    op.add_column("pairs", sa.Column("redacted", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("pairs", sa.Column("rejected", sa.JSON(), nullable=True))
    op.execute("UPDATE pairs SET cluster = conversation WHERE status = 'ready'")
    op.create_index("pairs_by_cluster", "pairs", ["task_id", "cluster", "status", "split", "id"])
    op.create_table(
        "pair_sketches",
        sa.Column("pair_id", sa.String(40), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("sketch", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pair_id"),
    )
    op.create_index(op.f("ix_pair_sketches_task_id"), "pair_sketches", ["task_id"])
    op.create_table(
        "clusterings",
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("clusters", sa.Integer(), nullable=False),
        sa.Column("learned", sa.Integer(), nullable=False),
        sa.Column("most", sa.LargeBinary(), nullable=False),
        sa.Column("many", sa.LargeBinary(), nullable=False),
        sa.Column("languages", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("task_id"),
    )
    for name in ("validation_rows", "train_pairs"):
        op.add_column("datasets", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("datasets", "train_pairs")
    op.drop_column("datasets", "validation_rows")
    op.drop_table("clusterings")
    op.drop_table("pair_sketches")
    op.execute("UPDATE pairs SET split = 'train' WHERE split = 'validation'")
    op.drop_index("pairs_by_cluster", "pairs")
    for name in ("rejected", "redacted", "left_out", "contributor", "cluster"):
        op.drop_column("pairs", name)
