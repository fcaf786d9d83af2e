"""The tables, in the order data flows:

    capture (+ reviews) -> pair -> dataset -> run -> adapter -> evaluation -> verdict -> rollout -> route

One room writes a table: proxy captures and the tasks it first sees; distill pairs to verdicts; serving engines and rollouts; admin
reviews, tokens, keys and tasks' policies. Routes have two writers, serving and admin, both through `store.routes`. Exceptions:
admin's import writes captures and their tasks as the proxy does, the proxy what a key has spent, and distill a task's columns of
its own (those that say so).
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from store import ids
from store.capture import Capture as Capture
from store.capture import CaptureKind as CaptureKind
from store.capture import CaptureRow as CaptureRow
from store.capture import Dictionary as Dictionary
from store.columns import BigId, Json, OrderedJson, StateText, UtcDateTime, now
from store.states import (
    AdapterStatus,
    BudgetPeriod,
    DatasetStatus,
    EngineStatus,
    EvaluationStatus,
    Outcome,
    PairStatus,
    ReviewKind,
    RolloutStage,
    RunPurpose,
    RunStatus,
    SearchStatus,
    Split,
    TaskStatus,
    TrialStatus,
)

Message = dict[str, Any]  #: one OpenAI chat message


def _created() -> Any:
    return Field(default_factory=now, sa_type=UtcDateTime, index=True)


class Task(SQLModel, table=True):
    """The requests one student learns. Key: `store.tasks`."""

    __tablename__ = "tasks"
    id: str = Field(primary_key=True, max_length=40)
    name: str = Field(unique=True, max_length=200)
    status: TaskStatus = Field(default=TaskStatus.ACTIVE, sa_type=StateText(TaskStatus))
    teacher_model: str = Field(default="", max_length=200)
    system: str = Field(default="", sa_type=sa.Text)
    policy: dict[str, Any] = Field(default_factory=dict, sa_type=Json)  #: what differs from `store.policy.Policy`
    #: a person wants a training now; set by admin, cleared by distill when it has turned
    train_asked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    #: when its last turn of the wheel came to an end, whatever that was
    turned_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    #: the hash of model, tools and response format, in which tasks are found; "": it was named by its clients; None: not known yet
    shape: str | None = Field(default=None, max_length=40, index=True)
    #: a person named, split, merged or decided something about it: `distill.discovery` does not merge it into another
    steered_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    #: the last capture that discovery has looked at for tasks within this one; its own column
    sorted_to: str = Field(default="", max_length=40, sa_column_kwargs={"server_default": ""})
    created_at: datetime = _created()


class TaskAlias(SQLModel, table=True):
    """A key, and a name, that lead to a task: those of a task that was merged into it; or its own, which then no template takes."""

    __tablename__ = "task_aliases"
    id: str = Field(primary_key=True, max_length=40)
    name: str = Field(default="", max_length=200, index=True)
    task_id: str = Field(index=True, max_length=40)
    changed_by: str = Field(max_length=100)
    changed_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class TaskTemplate(SQLModel, table=True):
    """What is fixed in a task's prompts: `store.templates`. One without segments: it is known by its key alone."""

    __tablename__ = "task_templates"
    id: str = Field(default_factory=lambda: ids.new("tpl"), primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    #: a shape, for system messages; or a task that is divided, for what is asked in it
    scope: str = Field(index=True, max_length=40)
    segments: list[str] = Field(default_factory=list, sa_type=OrderedJson)
    gaps: list[int] = Field(default_factory=list, sa_type=OrderedJson)
    changed_by: str = Field(max_length=100)
    changed_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Review(SQLModel, table=True):
    """What a person said of a capture. Rows are history: the latest that is no tag counts."""

    __tablename__ = "reviews"
    id: str = Field(default_factory=lambda: ids.new("rev"), primary_key=True, max_length=40)
    capture_id: str = Field(foreign_key="captures.id", index=True, max_length=40)
    kind: ReviewKind = Field(sa_type=StateText(ReviewKind))
    correction: Message | None = Field(default=None, sa_type=OrderedJson)  #: the assistant message that should have been
    tags: list[str] = Field(default_factory=list, sa_type=Json)
    note: str = Field(default="", sa_type=sa.Text)
    reviewer: str = Field(default="", max_length=100)
    created_at: datetime = _created()


class Pair(SQLModel, table=True):
    """A capture judged fit (or not) to learn from; made once, its split never changes."""

    __tablename__ = "pairs"
    __table_args__ = (
        sa.Index("pairs_by_content", "task_id", "content_hash"),
        sa.Index("pairs_by_prompt", "task_id", "prompt_hash"),
        sa.Index("pairs_by_conversation", "task_id", "conversation"),
        sa.Index("pairs_by_cluster", "task_id", "cluster", "status", "split", "id"),  # all that `distill.clusters` reads of them
    )
    id: str = Field(default_factory=lambda: ids.new("pair"), primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    capture_id: str = Field(foreign_key="captures.id", unique=True, max_length=40)
    capture_sha256: str = Field(default="", max_length=64)  #: of its bodies when the pair was made: `Capture.digest`
    status: PairStatus = Field(sa_type=StateText(PairStatus))
    reason: str = Field(default="", max_length=200)  #: why it was excluded
    split: Split | None = Field(default=None, sa_type=StateText(Split))
    content_hash: str = Field(default="", max_length=64)  #: of messages, tools and completion, without the ids of tool calls
    prompt_hash: str = Field(default="", max_length=64)  #: of messages and tools, likewise
    conversation: str = Field(default="", max_length=64)  #: pairs with the same one share a cluster
    cluster: str = Field(default="", max_length=64)  #: of near-duplicates and conversations: they share a split; `distill.clusters`
    contributor: str = Field(default="", max_length=64)  #: who sent it, hashed (`distill.pairs.contributor`); "": nobody is named
    left_out: str = Field(default="", max_length=200)  #: why its task's latest dataset goes without it, though it is fit
    redacted: int = 0  #: values that were replaced in this copy: `distill.redaction`
    messages: list[Message] = Field(default_factory=list, sa_type=OrderedJson)
    tools: list[dict[str, Any]] | None = Field(default=None, sa_type=OrderedJson)
    response_format: dict[str, Any] | None = Field(default=None, sa_type=OrderedJson)
    completion: Message = Field(default_factory=dict, sa_type=OrderedJson)
    #: the answer that a person's correction, which is the completion, replaced
    rejected: Message | None = Field(default=None, sa_type=sa.JSON(none_as_null=True))
    created_at: datetime = _created()


class PairSketch(SQLModel, table=True):
    """The MinHash of what varies in a pair's prompt. All of a task's can be made anew from its pairs."""

    __tablename__ = "pair_sketches"
    pair_id: str = Field(sa_column=sa.Column(sa.String(40), sa.ForeignKey("pairs.id", ondelete="CASCADE"), primary_key=True))
    task_id: str = Field(index=True, max_length=40)  #: with whose template it was made
    sketch: bytes = Field(sa_type=sa.LargeBinary)


class Clustering(SQLModel, table=True):
    """What distill knows of a task's prompts as a whole: what they share, and how many clusters there have been."""

    __tablename__ = "clusterings"
    task_id: str = Field(primary_key=True, max_length=40)
    version: int  #: of the sketches; 0 while some pairs may have none, as after a merge of tasks
    clusters: int = 0  #: made so far; the next one's number, which decides its split
    learned: int = 0  #: pairs there were when it was last learned what prompts share
    most: bytes = Field(default=b"", sa_type=sa.LargeBinary)  #: shingles that most prompts have: `distill.clusters.Template`
    many: bytes = Field(default=b"", sa_type=sa.LargeBinary)  #: shingles that many have
    languages: dict[str, int] = Field(default_factory=dict, sa_type=Json)  #: of questions and answers: `distill.language`


class Dataset(SQLModel, table=True):
    """Frozen JSONL files of pairs, known by the hash of their content."""

    __tablename__ = "datasets"
    __table_args__ = (sa.UniqueConstraint("task_id", "content_hash"),)
    id: str = Field(default_factory=lambda: ids.new("ds"), primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    status: DatasetStatus = Field(default=DatasetStatus.FROZEN, sa_type=StateText(DatasetStatus))
    content_hash: str = Field(max_length=64)
    path: str = Field(max_length=1000)  #: below STILLROOM_HOME
    train_rows: int
    train_pairs: int = 0  #: on that side of the split, from which the rows were chosen
    validation_rows: int = 0
    holdout_rows: int
    created_at: datetime = _created()


class DatasetPair(SQLModel, table=True):
    """Which pairs a dataset holds: the lineage from an adapter back to captures."""

    __tablename__ = "dataset_pairs"
    dataset_id: str = Field(foreign_key="datasets.id", primary_key=True, max_length=40)
    pair_id: str = Field(foreign_key="pairs.id", primary_key=True, index=True, max_length=40)


class Run(SQLModel, table=True):
    """One training of one dataset by one recipe."""

    __tablename__ = "runs"
    __table_args__ = (sa.UniqueConstraint("dataset_id", "base_model", "recipe_hash"),)
    id: str = Field(default_factory=lambda: ids.new("run"), primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    dataset_id: str = Field(foreign_key="datasets.id", max_length=40)
    base_model: str = Field(max_length=500)
    status: RunStatus = Field(default=RunStatus.QUEUED, sa_type=StateText(RunStatus), index=True)
    purpose: RunPurpose = Field(default=RunPurpose.CANDIDATE, sa_type=StateText(RunPurpose))
    recipe: dict[str, Any] = Field(sa_type=Json)
    recipe_hash: str = Field(max_length=64)  #: of the recipe, and of the share where that is not 1
    share: float = 1.0  #: of the dataset's training rows
    #: made before it began: `distill.estimate.Estimate`
    estimate: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON(none_as_null=True))
    #: what the trainer says of its work, to compare that with: `distill.runs`
    took: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON(none_as_null=True))
    peak_memory: int | None = Field(default=None, sa_type=sa.BigInteger)  #: bytes
    validation_loss: float | None = None  #: nats a token, of the adapter
    #: on the validation rows: `distill.score.Score`
    score: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON(none_as_null=True))
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    rows_per_second: float | None = None
    train_seconds: float | None = None
    attempts: int = 0  #: times in a row that its trainer was killed and had got no further than before
    error: str | None = Field(default=None, sa_type=sa.Text)
    created_at: datetime = _created()
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Search(SQLModel, table=True):
    """A budgeted search for a task's best recipe on one dataset, judged on the validation rows, never on the gate's."""

    __tablename__ = "searches"
    __table_args__ = (sa.UniqueConstraint("dataset_id", "base_model", "recipe_hash"),)
    id: str = Field(default_factory=lambda: ids.new("search"), primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    dataset_id: str = Field(foreign_key="datasets.id", max_length=40)
    base_model: str = Field(max_length=500)  #: that the engine has: only its students can be served now
    recipe: dict[str, Any] = Field(sa_type=Json)  #: the first trial, from which the others differ
    recipe_hash: str = Field(max_length=64)
    status: SearchStatus = Field(default=SearchStatus.RUNNING, sa_type=StateText(SearchStatus))
    space: dict[str, Any] = Field(sa_type=Json)  #: what is varied, each with its choices
    budget_seconds: float | None = None  #: of training and scoring; None: not yet known
    spent_seconds: float = 0.0
    run_id: str | None = Field(default=None, max_length=40)  #: the choice
    says: str = Field(default="", sa_type=sa.Text)  #: why that one, for a person
    plot: str | None = Field(default=None, max_length=1000)  #: PNG, below STILLROOM_HOME
    error: str | None = Field(default=None, sa_type=sa.Text)
    created_at: datetime = _created()
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Trial(SQLModel, table=True):
    """One recipe of a search, trained on more and more of the rows as long as it is among the best."""

    __tablename__ = "trials"
    search_id: str = Field(foreign_key="searches.id", primary_key=True, max_length=40)
    number: int = Field(primary_key=True)
    status: TrialStatus = Field(default=TrialStatus.RUNNING, sa_type=StateText(TrialStatus))
    choices: dict[str, Any] = Field(sa_type=Json)  #: of each thing in the search's space
    base_model: str = Field(max_length=500)
    recipe: dict[str, Any] = Field(sa_type=Json)
    rungs: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  #: share, run_id, loss (bits a character), seconds
    chance: float | None = None  #: of passing the gate, judged by the validation rows
    front: bool = False  #: no other is better in quality, cost and latency at once
    error: str | None = Field(default=None, sa_type=sa.Text)
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class LearningCurve(SQLModel, table=True):
    """A run's recipe trained on an eighth, a quarter and a half of its rows too, and what that says of more data."""

    __tablename__ = "learning_curves"
    run_id: str = Field(foreign_key="runs.id", primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    points: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  #: `distill.curve.Point`
    #: `distill.curve.Advice`, and its `BreakEven` as "worth"
    advice: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON(none_as_null=True))
    says: str = Field(default="", sa_type=sa.Text)  #: for a person
    created_at: datetime = _created()
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class RunStep(SQLModel, table=True):
    """A point of a run's loss curve."""

    __tablename__ = "run_steps"
    run_id: str = Field(foreign_key="runs.id", primary_key=True, max_length=40)
    step: int = Field(primary_key=True)
    loss: float
    learning_rate: float
    rows_per_second: float
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Adapter(SQLModel, table=True):
    """An immutable LoRA folder. Its id is the name vLLM knows it by: fresh, never used again."""

    __tablename__ = "adapters"
    __table_args__ = (sa.UniqueConstraint("task_id", "version"),)
    id: str = Field(primary_key=True, max_length=200)  #: `{task_id}@v{version}`
    task_id: str = Field(index=True, max_length=40)
    version: int
    run_id: str = Field(foreign_key="runs.id", unique=True, max_length=40)
    base_model: str = Field(max_length=500)
    path: str = Field(max_length=1000)  #: below STILLROOM_HOME
    sha256: str = Field(max_length=64)  #: of adapter_model.safetensors
    #: of each file in the folder but its card: `distill.lineage`; empty for adapters of before 0009
    files: dict[str, str] = Field(default_factory=dict, sa_type=Json)
    #: what it is shown instead of the whole prompt: `store.prompts.Transform`; none: the prompt as it is
    transform: dict[str, Any] | None = Field(default=None, sa_type=sa.JSON(none_as_null=True))
    #: since when something that it learned from is erased: it is to be trained again
    stale_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    status: AdapterStatus = Field(default=AdapterStatus.CANDIDATE, sa_type=StateText(AdapterStatus), index=True)
    created_at: datetime = _created()


class Evaluation(SQLModel, table=True):
    """The candidate asked every holdout prompt through vLLM."""

    __tablename__ = "evaluations"
    id: str = Field(default_factory=lambda: ids.new("eval"), primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    adapter_id: str = Field(foreign_key="adapters.id", unique=True, max_length=200)
    dataset_id: str = Field(foreign_key="datasets.id", max_length=40)
    status: EvaluationStatus = Field(default=EvaluationStatus.RUNNING, sa_type=StateText(EvaluationStatus))
    kind: str = Field(default="", max_length=20)  #: label, json, tools or text: `distill.agreement`
    answered: int = 0
    total: int = 0
    attempts: int = 0  #: times in a row that it broke off and nothing was answered
    error: str | None = Field(default=None, sa_type=sa.Text)
    created_at: datetime = _created()
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class EvaluationItem(SQLModel, table=True):
    """One holdout prompt: t0 is the teacher's logged answer, t1 and t2 the teacher asked again, s the student's."""

    __tablename__ = "evaluation_items"
    evaluation_id: str = Field(foreign_key="evaluations.id", primary_key=True, max_length=40)
    pair_id: str = Field(foreign_key="pairs.id", primary_key=True, max_length=40)
    t0: Message = Field(sa_type=OrderedJson)
    t1: Message | None = Field(default=None, sa_type=OrderedJson)
    t2: Message | None = Field(default=None, sa_type=OrderedJson)
    s: Message | None = Field(default=None, sa_type=OrderedJson)  #: None: the student gave no answer, see `error`
    agrees: bool  #: B = agree(s, t0)
    teacher_agrees: bool | None = None  #: A = agree(t1, t0); None when the teacher was not asked again
    stable: bool = True  #: t0 = t1 = t2
    hard_error: bool  #: s agrees with none of t0, t1, t2
    latency_ms: float | None = None
    error: str | None = Field(default=None, sa_type=sa.Text)


class Verdict(SQLModel, table=True):
    """The gate's decision, with every number that made it."""

    __tablename__ = "verdicts"
    id: str = Field(default_factory=lambda: ids.new("ver"), primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    adapter_id: str = Field(foreign_key="adapters.id", unique=True, max_length=200)
    evaluation_id: str = Field(foreign_key="evaluations.id", max_length=40)
    outcome: Outcome = Field(sa_type=StateText(Outcome))
    reason: str = Field(sa_type=sa.Text)  #: in words, for a person
    numbers: dict[str, Any] = Field(sa_type=Json)  #: `distill.gate`'s inputs and results
    created_at: datetime = _created()


class Engine(SQLModel, table=True):
    """A vLLM server that serving supervises, or that STILLROOM_STUDENT_URL names."""

    __tablename__ = "engines"
    id: str = Field(primary_key=True, max_length=40)
    url: str | None = Field(default=None, max_length=500)  #: without /v1
    status: EngineStatus = Field(sa_type=StateText(EngineStatus))
    base_model: str = Field(default="", max_length=500)  #: as configured
    base_path: str | None = Field(default=None, max_length=1000)  #: the prepared folder
    served_name: str = Field(default="", max_length=500)  #: the base model's name in vLLM
    context: int | None = None  #: tokens of a prompt and its answer together, as vLLM says
    pid: int | None = None
    restarts: int = 0
    detail: str = Field(default="", sa_type=sa.Text)
    loaded: list[str] = Field(default_factory=list, sa_type=Json)  #: adapters it said it has
    heartbeat_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Rollout(SQLModel, table=True):
    """An adapter's way into traffic and out of it."""

    __tablename__ = "rollouts"
    id: str = Field(default_factory=lambda: ids.new("roll"), primary_key=True, max_length=40)
    task_id: str = Field(index=True, max_length=40)
    adapter_id: str = Field(foreign_key="adapters.id", unique=True, max_length=200)
    stage: RolloutStage = Field(default=RolloutStage.STAGED, sa_type=StateText(RolloutStage), index=True)
    detail: str = Field(default="", sa_type=sa.Text)
    created_at: datetime = _created()
    live_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Route(SQLModel, table=True):
    """Who answers a task now. No row, or no adapter: the teacher. Written only through `store.routes`."""

    __tablename__ = "routes"
    task_id: str = Field(primary_key=True, max_length=40)
    adapter_id: str | None = Field(default=None, max_length=200)
    holdback: float = 0.02  #: share of requests that the teacher keeps
    version: int = 1
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    updated_by: str = Field(default="", max_length=100)


class Lease(SQLModel, table=True):
    """Single flight across processes and machines. Taken only through `store.leases`."""

    __tablename__ = "leases"
    name: str = Field(primary_key=True, max_length=200)
    holder: str = Field(max_length=200)
    fence: int = 1  #: grows with every new holder
    expires_at: datetime = Field(sa_type=UtcDateTime)


class AuditEvent(SQLModel, table=True):
    """Who did what, when. Appended only, through `store.audit`."""

    __tablename__ = "audit_events"
    id: int | None = Field(default=None, primary_key=True, sa_type=BigId)
    created_at: datetime = _created()
    actor: str = Field(max_length=100)
    action: str = Field(max_length=100)
    subject: str = Field(default="", max_length=200)
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=Json)


class AdminToken(SQLModel, table=True):
    """A bearer token of the admin API; only its SHA-256 is kept."""

    __tablename__ = "admin_tokens"
    sha256: str = Field(primary_key=True, max_length=64)
    label: str = Field(max_length=100)
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class VirtualKey(SQLModel, table=True):
    """A key of stillroom's own that clients use in place of the operator's; only its SHA-256 is kept. See `store.keys`."""

    __tablename__ = "virtual_keys"
    __table_args__ = (
        # A label is free again once its key is revoked.
        sa.Index(
            "virtual_keys_by_label",
            "label",
            unique=True,
            sqlite_where=sa.text("revoked_at IS NULL"),
            postgresql_where=sa.text("revoked_at IS NULL"),
        ),
    )
    id: str = Field(default_factory=lambda: ids.new("key"), primary_key=True, max_length=40)
    sha256: str = Field(unique=True, max_length=64)
    last4: str = Field(max_length=4)  #: the key's end, for people to tell keys apart
    label: str = Field(max_length=100)
    tasks: list[str] = Field(default_factory=list, sa_type=Json)  #: ids, or names of tasks not yet seen; empty: all
    budget_usd: float | None = None
    budget_period: BudgetPeriod = Field(default=BudgetPeriod.TOTAL, sa_type=StateText(BudgetPeriod))
    spent_usd: float = 0.0  #: with a monthly budget: in the month `spent_in`
    spent_in: str = Field(default="", max_length=7)  #: the newest month (UTC) with a cost, as 2026-11
    requests_per_minute: int | None = None
    created_at: datetime = _created()
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
