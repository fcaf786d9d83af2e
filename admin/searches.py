"""What searches and learning curves found: quality against cost and latency, and what more data would do."""

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from admin import tasks
from admin.problems import NotFound
from store.settings import StoreSettings
from store.states import SearchStatus, TrialStatus
from store.tables import LearningCurve, Run, Search, Trial


class TrialLine(BaseModel):
    """A recipe that was tried."""

    number: int
    status: TrialStatus
    base_model: str
    learning_rate: float
    epochs: int
    rank: int
    strip: bool = Field(description="Trained and served without the long prompt.")
    share: float = Field(description="Of the training rows that it got to learn from.")
    loss: float | None = Field(description="On the validation rows at that share, in bits a character of the answers.")
    exact: float | None = Field(description="Share of the validation answers that are the teacher's token for token.")
    chance: float | None = Field(description="Of passing the gate, judged by the validation rows; none for free text.")
    answer_seconds: float | None = Field(description="Of this machine, an answer by itself.")
    latency_ms: float | None
    train_seconds: float = Field(description="Of all its trainings and their judging.")
    front: bool = Field(description="No other is better in quality, cost and latency at once.")
    chosen: bool
    error: str | None


class SearchDetail(BaseModel, from_attributes=True):
    """A search and its trials: the Pareto table."""

    id: str
    created_at: datetime
    task_id: str
    dataset_id: str
    base_model: str
    status: SearchStatus
    budget_seconds: float | None
    spent_seconds: float
    says: str
    plot: str | None = Field(description="PNG, below STILLROOM_HOME; also at /api/tasks/{task}/pareto.png.")
    error: str | None
    run_id: str | None = Field(description="The choice's run.")
    finished_at: datetime | None
    trials: list[TrialLine] = []


class CurvePointOf(BaseModel):
    """A training on a share of the rows."""

    rows: int
    errors: float
    judged: int


class Outlook(BaseModel):
    """What is to be expected of a training on so many rows."""

    rows: int
    chance: float = Field(description="Of passing the gate.")
    low: float = Field(description="Of the error: the 80 % interval's lower end.")
    error: float
    high: float


class BreakEven(BaseModel):
    """Whether the student earns what it costs."""

    worth_it: bool | None = Field(description="None: it cannot be said.")
    saved_a_day: float | None = Field(description="USD.")
    days: float | None
    says: str


class CurveAdvice(BaseModel):
    """go: the next rows should do; collect: a doubling may; change: more of the same data will not."""

    do: str
    now: Outlook
    more: Outlook
    double: Outlook
    says: str
    worth: BreakEven


class LearningCurveDetail(BaseModel, from_attributes=True):
    """A learning curve and what it advises."""

    run_id: str
    task_id: str
    created_at: datetime
    finished_at: datetime | None = Field(description="None: it is being measured.")
    points: list[CurvePointOf]
    advice: CurveAdvice | None
    says: str


def pareto(session: Session, task: str) -> SearchDetail:
    """The task's latest search. Raises NotFound."""
    found = _latest(session, task)
    trials = session.exec(select(Trial).where(Trial.search_id == found.id).order_by(col(Trial.number))).all()
    detail = SearchDetail.model_validate(found)
    detail.trials = [_line(session, found, trial) for trial in trials]
    return detail


def plot(session: Session, task: str, settings: StoreSettings) -> Path:
    """The PNG of the task's latest search. Raises NotFound."""
    found = _latest(session, task)
    file = settings.home_path / found.plot if found.plot else None
    if file is None or not file.is_file():
        raise NotFound("The search has no plot: it is not at its end, or found nothing.", "no_plot")
    return file


def curve(session: Session, task: str) -> LearningCurveDetail:
    """The task's latest learning curve. Raises NotFound."""
    task_id = tasks.find(session, task).id
    newest = select(LearningCurve).where(LearningCurve.task_id == task_id).order_by(col(LearningCurve.created_at).desc())
    found = session.exec(newest).first()
    if found is None:
        raise NotFound(
            "No learning curve was measured: that is done after a student did not pass, or always with the policy `curve=always`.",
            "no_curve",
        )
    return LearningCurveDetail.model_validate(found)


def _latest(session: Session, task: str) -> Search:
    task_id = tasks.find(session, task).id
    found = session.exec(select(Search).where(Search.task_id == task_id).order_by(col(Search.created_at).desc())).first()
    if found is None:
        raise NotFound(
            "There was no search: it begins by itself at the policy's `search_rows` training rows, or with `search=on`.",
            "no_search",
        )
    return found


def _line(session: Session, search: Search, trial: Trial) -> TrialLine:
    last = trial.rungs[-1] if trial.rungs else None
    run = session.get(Run, last["run_id"]) if last else None
    score = (run.score if run and trial.status == TrialStatus.COMPLETE else None) or {}
    return TrialLine(
        number=trial.number,
        status=trial.status,
        base_model=trial.base_model,
        learning_rate=trial.choices["learning_rate"],
        epochs=trial.choices["epochs"],
        rank=trial.choices["rank"],
        strip=trial.choices["strip"],
        share=last["share"] if last else 0.0,
        loss=last["loss"] if last else None,
        exact=score["exact"] / score["judged"] if score else None,
        chance=trial.chance,
        answer_seconds=score.get("answer_seconds"),
        latency_ms=score.get("latency_ms"),
        train_seconds=sum(rung["seconds"] for rung in trial.rungs),
        front=trial.front,
        chosen=run is not None and run.id == search.run_id,
        error=trial.error,
    )
