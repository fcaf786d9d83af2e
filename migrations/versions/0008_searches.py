"""searches for a recipe, learning curves; what a run is for, was expected to take and took."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

RUN_COLUMNS = ("purpose", "share", "estimate", "took", "peak_memory", "validation_loss", "score")


def upgrade() -> None:
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    time = sa.DateTime(timezone=True)
    op.add_column("runs", sa.Column("purpose", sa.String(32), nullable=False, server_default="candidate"))
    op.add_column("runs", sa.Column("share", sa.Float(), nullable=False, server_default="1"))
    op.add_column("runs", sa.Column("estimate", sa.JSON(), nullable=True))
    op.add_column("runs", sa.Column("took", sa.JSON(), nullable=True))
    op.add_column("runs", sa.Column("peak_memory", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("validation_loss", sa.Float(), nullable=True))
    op.add_column("runs", sa.Column("score", sa.JSON(), nullable=True))
    op.create_table(
        "searches",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("dataset_id", sa.String(40), nullable=False),
        sa.Column("base_model", sa.String(500), nullable=False),
        sa.Column("recipe", json, nullable=False),
        sa.Column("recipe_hash", sa.String(64), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("space", json, nullable=False),
        sa.Column("budget_seconds", sa.Float(), nullable=True),
        sa.Column("spent_seconds", sa.Float(), nullable=False),
        sa.Column("run_id", sa.String(40), nullable=True),
        sa.Column("says", sa.Text(), nullable=False),
        sa.Column("plot", sa.String(1000), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", time, nullable=False),
        sa.Column("finished_at", time, nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("dataset_id", "base_model", "recipe_hash"),
    )
    op.create_index(op.f("ix_searches_task_id"), "searches", ["task_id"])
    op.create_index(op.f("ix_searches_created_at"), "searches", ["created_at"])
    op.create_table(
        "trials",
        sa.Column("search_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("choices", json, nullable=False),
        sa.Column("base_model", sa.String(500), nullable=False),
        sa.Column("recipe", json, nullable=False),
        sa.Column("rungs", json, nullable=False),
        sa.Column("chance", sa.Float(), nullable=True),
        sa.Column("front", sa.Boolean(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", time, nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"]),
        sa.PrimaryKeyConstraint("search_id", "number"),
    )
    op.create_table(
        "learning_curves",
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("points", json, nullable=False),
        sa.Column("advice", sa.JSON(), nullable=True),
        sa.Column("says", sa.Text(), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("finished_at", time, nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index(op.f("ix_learning_curves_task_id"), "learning_curves", ["task_id"])
    op.create_index(op.f("ix_learning_curves_created_at"), "learning_curves", ["created_at"])


def downgrade() -> None:
    op.drop_table("learning_curves")
    op.drop_table("trials")
    op.drop_table("searches")
    for column in RUN_COLUMNS:
        op.drop_column("runs", column)
