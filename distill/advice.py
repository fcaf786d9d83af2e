"""A run's learning curve and its advice, measured after the verdict and kept: `distill.curve` decides, this file has it trained.

The errors are those of the validation rows, so that the gate's holdout stays unseen: an answer that is not the teacher's, token for
token (`distill.score`).
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from sqlmodel import Session, col, func, select

from distill import curve, estimate, runs, scoring
from distill.agreement import Kind
from distill.curve import Advice, BreakEven, Economy, Point
from distill.recipe import Recipe
from distill.runs import RunFailed
from distill.score import Score
from distill.settings import DistillSettings
from store.columns import now
from store.policy import Policy
from store.session import Database
from store.states import Outcome, RunPurpose, Server
from store.tables import Adapter, Capture, Dataset, LearningCurve, Run, Verdict

log = logging.getLogger("stillroom.distill")
DAYS = 14  #: of traffic that tell what a day is like
TEXT = "The answers are free text, which takes a judge to compare: what more rows would do cannot be said."


def is_due(session: Session, verdict: Verdict, policy: Policy) -> bool:
    """Whether to measure a curve after this verdict: the policy's word, or that the student did not pass."""
    adapter = session.get_one(Adapter, verdict.adapter_id)
    run = session.get_one(Run, adapter.run_id)
    dataset = session.get_one(Dataset, run.dataset_id)
    if policy.curve == "never" or (policy.curve == "auto" and verdict.outcome == Outcome.PASSED):
        return False
    if dataset.validation_rows < scoring.LEAST_VALIDATION or dataset.train_rows * curve.SHARES[-2] < scoring.LEAST_ROWS:
        return False
    known = session.get(LearningCurve, run.id)
    return known is None or known.finished_at is None


def unfinished(session: Session, task_id: str) -> LearningCurve | None:
    """The task's curve that is being measured."""
    return session.exec(
        select(LearningCurve).where(LearningCurve.task_id == task_id, col(LearningCurve.finished_at).is_(None))
    ).first()


def give_up(db: Database, run_id: str, why: str) -> None:
    """End a curve without an advice."""
    with db.begin() as session:
        kept = session.get_one(LearningCurve, run_id)
        kept.says, kept.finished_at = f"The curve could not be measured: {why}", now()


def measure(
    db: Database, verdict: Verdict, base: Path, policy: Policy, settings: DistillSettings, check: Callable[[], None]
) -> LearningCurve:
    """Train the judged run's recipe on shares of its rows, as far as that is not done, and say what follows.

    `check` raises if this process must stop. Raises RunFailed, TrainerKilled.
    """
    with db.begin() as session:
        run = session.get_one(Run, session.get_one(Adapter, verdict.adapter_id).run_id)
        dataset = session.get_one(Dataset, run.dataset_id)
        kept = session.get(LearningCurve, run.id) or LearningCurve(run_id=run.id, task_id=run.task_id)
        session.add(kept)
        if kept.finished_at is not None:
            return kept
    if scoring.kind(dataset, settings) is Kind.TEXT:
        return _finish(db, run.id, [], None, TEXT)
    points, scores = [], list[Score]()
    for share in curve.SHARES:
        rows = round(share * dataset.train_rows)
        if rows < scoring.LEAST_ROWS:
            continue
        scores.append(_score(db, run, dataset, share, base, settings, check))
        points.append(Point(rows, scores[-1].judged - scores[-1].exact, scores[-1].judged))
        with db.begin() as session:
            session.get_one(LearningCurve, run.id).points = [asdict(point) for point in points]
    self_agreement = float(verdict.numbers.get("self_agreement", 1.0))
    advice = curve.advise(points, max(1, _holdout(dataset, policy)), policy, self_agreement)
    with db.read() as session:
        economy = _economy(session, run, scores[-1], policy, settings)
    worth = curve.break_even(economy)
    return _finish(db, run.id, points, (advice, worth), f"{advice.says} {worth.says}")


def _score(
    db: Database, run: Run, dataset: Dataset, share: float, base: Path, settings: DistillSettings, check: Callable[[], None]
) -> Score:
    """Of the run itself, or of one like it on a share of the rows."""
    if share < 1:
        with db.begin() as session:
            recipe = Recipe.model_validate(run.recipe)
            opened = runs.open_run(session, dataset, run.base_model, recipe, again=True, share=share, purpose=RunPurpose.POINT)
            session.flush()
        if opened.score is not None:  # a search was there before
            return Score(**opened.score)
        estimate.before(db, opened.id, base, settings, check)
        try:
            run = runs.complete(db, opened.id, base, settings, check)
        except RunFailed as failed:
            runs.fail(db, opened.id, str(failed), settings)
            raise
    found = scoring.of(db, run.id, base, settings, check)
    if share < 1:
        runs.discard(run, settings)
    return found


def _finish(db: Database, run_id: str, points: list[Point], found: tuple[Advice, BreakEven] | None, says: str) -> LearningCurve:
    with db.begin() as session:
        kept = session.get_one(LearningCurve, run_id)
        kept.points = [asdict(point) for point in points]
        kept.advice = {**asdict(found[0]), "worth": asdict(found[1])} if found else None
        kept.says, kept.finished_at = says, now()
    log.info("%s: %s", kept.task_id, says)
    return kept


def _holdout(dataset: Dataset, policy: Policy) -> int:
    return min(dataset.holdout_rows, policy.holdout_max)


def _economy(session: Session, run: Run, score: Score, policy: Policy, settings: DistillSettings) -> Economy:
    """The task's own volume and prices, of its last DAYS days."""
    since = now() - timedelta(days=DAYS)
    own = Capture.task_id == run.task_id, Capture.created_at > since
    requests, first = session.exec(select(func.count(col(Capture.id)), func.min(Capture.created_at)).where(*own)).one()
    paid = select(func.avg(Capture.cost_usd)).where(*own, Capture.served_by == Server.TEACHER)
    days = max(1.0, (now() - first).total_seconds() / 86400) if first is not None else 1.0
    again = estimate.usd(run.train_seconds or 0.0, settings.compute_usd_hour)
    return Economy(
        requests_a_day=requests / days,
        teacher_usd=session.exec(paid).one(),
        student_usd=estimate.usd(score.answer_seconds, settings.compute_usd_hour),
        coverage=1 - policy.holdback,
        training_usd=2 * again,  # of the rows that are still to come, too
    )
