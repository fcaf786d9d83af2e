"""tasks found by themselves: what a task's requests have in common, which keys lead to it, what a person decided."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("shape", sa.String(40), nullable=True))
    op.add_column("tasks", sa.Column("steered_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tasks", sa.Column("sorted_to", sa.String(40), server_default="", nullable=False))
    op.create_index(op.f("ix_tasks_shape"), "tasks", ["shape"])
    op.create_table(
        "task_aliases",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("changed_by", sa.String(100), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_task_aliases_task_id"), "task_aliases", ["task_id"])
    op.create_index(op.f("ix_task_aliases_name"), "task_aliases", ["name"])
    op.create_table(
        "task_templates",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("scope", sa.String(40), nullable=False),
        sa.Column("segments", sa.JSON(), nullable=False),
        sa.Column("gaps", sa.JSON(), nullable=False),
        sa.Column("changed_by", sa.String(100), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_task_templates_task_id"), "task_templates", ["task_id"])
    op.create_index(op.f("ix_task_templates_scope"), "task_templates", ["scope"])


def downgrade() -> None:
    op.drop_table("task_templates")
    op.drop_table("task_aliases")
    op.drop_index(op.f("ix_tasks_shape"), table_name="tasks")
    op.drop_column("tasks", "sorted_to")
    op.drop_column("tasks", "steered_at")
    op.drop_column("tasks", "shape")
