"""What an owner may decide about a task: the live policy, kept on its row."""

from pydantic import BaseModel, ConfigDict, Field

from store.tables import Task


class Policy(BaseModel):
    """Defaults of DECISIONS; a task's row holds only what differs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    first_pairs: int = Field(300, ge=1, description="The first training starts at this many pairs.")
    growth: float = Field(0.25, gt=0, le=100, description="The next one when the pairs have grown by this share.")
    min_hours: float = Field(24.0, ge=0, le=8760, description="At least this many hours between two trainings.")
    cron: str | None = Field(None, description="Train by this crontab line instead of by growth, e.g. '0 3 * * *'.")
    holdout: float = Field(0.2, gt=0, lt=1, description="Share of conversations kept from training, for the gate.")
    holdout_max: int = Field(1000, ge=1, description="The gate judges at most this many holdout rows.")
    delta: float = Field(0.03, gt=0, lt=1, description="Margin below the teacher's agreement with itself.")
    delta_noisy: float = Field(0.05, gt=0, lt=1, description="Margin where that agreement is below 92 %.")
    hard_error_max: float = Field(0.03, gt=0, lt=1, description="Upper bound allowed for the student's hard errors.")
    holdback: float = Field(0.02, ge=0, le=1, description="Share of a live task's requests that the teacher keeps.")
    auto_promote: bool = Field(True, description="Promote a candidate that passed without asking a person.")
    honour_store: bool = Field(False, description="A request that says `store: false` is not captured.")
    train_unreviewed: bool = Field(True, description="Learn from pairs that no person has approved.")


def of(task: Task) -> Policy:
    """The task's policy. Raises pydantic.ValidationError if its row holds what a policy cannot."""
    return Policy.model_validate(task.policy)
