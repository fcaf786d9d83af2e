"""What an owner may decide about a task: the live policy, kept on its row."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from store.tables import Task

Redacted = Literal["email", "phone", "iban", "card", "ip", "ssn", "key"]


class Policy(BaseModel):
    """Defaults of DECISIONS; a task's row holds only what differs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    first_pairs: int = Field(300, ge=1, description="The first training starts at this many pairs.")
    growth: float = Field(0.25, gt=0, le=100, description="The next one when the pairs have grown by this share.")
    min_hours: float = Field(24.0, ge=0, le=8760, description="At least this many hours between two trainings.")
    cron: str | None = Field(None, description="Train by this crontab line instead of by growth, e.g. '0 3 * * *'.")
    holdout: float = Field(0.2, gt=0, lt=1, description="Share of conversations kept from training, for the gate.")
    holdout_max: int = Field(1000, ge=1, description="The gate judges at most this many holdout rows.")
    validation: float = Field(0.1, ge=0, lt=1, description="Share kept from training to compare recipes on, from 100 pairs on.")
    cluster_rows: int = Field(50, ge=1, description="At most so many near-duplicates, or turns of one conversation, are learned.")
    user_share: float = Field(
        0.01, gt=0, le=1, description="Share of the training rows that a user who sends far more than is usual may own."
    )
    max_characters: int = Field(200_000, ge=1, description="Longer pairs, prompt and answer together, are left out.")
    refusals: bool = Field(False, description="Learn from answers that refuse in words: I'm sorry, but I can't help with that.")
    off_language: bool = Field(False, description="Learn from answers in another language than the task's, where that is clear.")
    redact: list[Redacted] = Field(
        default_factory=list,
        description="What is replaced in new pairs' stored copies: email, phone, iban, card, ip, ssn, key. Names are not found.",
    )
    delta: float = Field(0.03, gt=0, lt=1, description="Margin below the teacher's agreement with itself.")
    delta_noisy: float = Field(0.05, gt=0, lt=1, description="Margin where that agreement is below 92 %.")
    hard_error_max: float = Field(0.03, gt=0, lt=1, description="Upper bound allowed for the student's hard errors.")
    holdback: float = Field(0.02, ge=0, le=1, description="Share of a live task's requests that the teacher keeps.")
    auto_promote: bool = Field(True, description="Promote a candidate that passed without asking a person.")
    honour_store: bool = Field(False, description="A request that says `store: false` is not captured.")
    train_unreviewed: bool = Field(True, description="Learn from pairs that no person has approved.")
    strip_from: int = Field(10_000, ge=1, description="From so many training rows on a student may go without the long prompt.")
    search: Literal["auto", "on", "off"] = Field(
        "auto", description="Search for the best recipe before a training; auto: from `search_rows` training rows on."
    )
    search_rows: int = Field(5000, ge=1, description="From so many training rows on a search is worth its time by itself.")
    search_trainings: float = Field(4.0, gt=0, description="A search may take as long as so many trainings by the usual recipe.")
    search_hours: float | None = Field(None, gt=0, description="Or so many hours.")
    search_usd: float | None = Field(None, gt=0, description="Or so much money, by STILLROOM_COMPUTE_USD_HOUR.")
    search_bases: list[str] = Field(default_factory=list, description="Model folders that a search tries beside the engine's.")
    curve: Literal["auto", "always", "never"] = Field(
        "auto", description="Measure a learning curve after a training; auto: where the student did not pass."
    )


def of(task: Task) -> Policy:
    """The task's policy. Raises pydantic.ValidationError if its row holds what a policy cannot."""
    return Policy.model_validate(task.policy)
