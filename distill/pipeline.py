"""One turn of the wheel, read top to bottom:

    captures -> pairs -> dataset -> (search for the recipe) -> run -> adapter -> (serving loads it) -> evaluation -> verdict
                                                                                          -> (learning curve, advice)

Each hop is keyed by its input and gives back what is already there, so a crash anywhere is repaired by turning again.
"""

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError
from sqlmodel import col, select

from distill import advice, card, datasets, estimate, evaluate, gate, pairs, recipe, runs, search
from distill.agreement import Kind
from distill.clusters import Clusters
from distill.gate import Decision
from distill.settings import DistillSettings
from serving.vllm import StudentError
from store import audit, leases, policy
from store.session import Database
from store.states import AdapterStatus, EngineStatus, EvaluationStatus, Outcome, RolloutStage, RunStatus, TaskStatus
from store.tables import Adapter, Dataset, Engine, Evaluation, Rollout, Run, Search, Task, Verdict

log = logging.getLogger("stillroom.distill")
KEPT = 8  #: tasks whose clusters stay in memory between two looks


class NotReady(Exception):
    """Something the turn needs is not there yet; it goes on from where it stopped when it is."""


def turn(db: Database, task_id: str, settings: DistillSettings, check: Callable[[], None] = lambda: None) -> Verdict | None:
    """Turn the wheel once for a task. Returns the verdict; None if the adapter was refused without one.

    `check` is called between steps and raises if this process must stop. Raises NotTrainable, NotReady, RunFailed,
    TrainerKilled.
    """
    gather_alone(db, task_id, settings)
    engine = _engine(db)

    assert engine.base_path is not None
    base = Path(engine.base_path)

    if (verdict := _half_advised(db, task_id, engine)) is not None:
        advise(db, verdict, base, settings, check)
        return verdict

    begun, dataset = _begin(db, task_id, engine.base_model, settings)
    check()

    log.info("%s: training on %d rows, %d held out", task_id, dataset.train_rows, dataset.holdout_rows)
    run = begun if isinstance(begun, Run) else _search(db, begun, base, settings, check)
    try:
        estimate.before(db, run.id, base, settings, check)
        adapter = runs.train(db, run.id, base, settings, check)
    except (runs.RunFailed, OSError) as failure:
        runs.fail(db, run.id, str(failure), settings)
        raise runs.RunFailed(str(failure)) from failure

    why = _wait_until_staged(db, adapter, settings, check)
    if why is not None:
        _refuse(db, adapter.id, why)
        return None

    with db.begin() as session:
        evaluation = evaluate.open_evaluation(session, adapter, dataset)
        session.flush()
    if evaluation.status != EvaluationStatus.DONE:
        log.info("%s: asking %s the %d held-out prompts", task_id, adapter.id, dataset.holdout_rows)
        try:
            engine = _engine(db)
            evaluate.run(db, evaluation, dataset, _url(engine), settings, check, context=engine.context)
        except StudentError as error:
            raise NotReady(f"vLLM stopped answering during the evaluation: {error}") from error
        except evaluate.EvaluationFailed as failure:
            _refuse(db, adapter.id, str(failure))
            return None

    verdict = judge(db, evaluation.id, settings)
    log.info("%s: %s. %s", task_id, verdict.outcome, verdict.reason)
    advise(db, verdict, base, settings, check)
    return verdict


def gather_alone(db: Database, task_id: str, settings: DistillSettings) -> None:
    """`gather`, if nobody else does it: two at once would not know of each other's clusters, and the split would be straddled."""
    with leases.hold(db, f"pairs {task_id}", leases.this_thread(), settings.lease_seconds) as check:
        if check is not None:
            gather(db, task_id, check)


def gather(db: Database, task_id: str, check: Callable[[], None] = lambda: None) -> int:
    """Make pairs of all captures that have none, some hundred a transaction. Returns how many captures were looked at.

    `check` is called before each transaction and raises if this process must stop.
    """
    looked_at, known = 0, _clusters(db, task_id)
    with db.read() as session:
        if pairs.are_missing(session, task_id) or known.behind(session):
            known.open(session)  # here, where it keeps nobody waiting
    while True:
        check()
        with db.begin() as session:
            task = session.get(Task, task_id)
            if task is None or task.status == TaskStatus.IGNORED:
                return looked_at
            found = pairs.extract(session, task_id, _policy(task), clusters=known)
        looked_at += found
        if found == 0:
            return looked_at


@lru_cache(maxsize=KEPT)
def _clusters(_db: Database, task_id: str) -> Clusters:
    """Those of the last turn: they look themselves whether they are as the rows say."""
    return Clusters(task_id)


def judge(db: Database, evaluation_id: str, settings: DistillSettings) -> Verdict:
    """The gate's verdict on a finished evaluation, in the adapter's card too; the existing one if it has been judged."""
    with db.begin() as session:
        evaluation = session.get_one(Evaluation, evaluation_id)
        known = session.exec(select(Verdict).where(Verdict.adapter_id == evaluation.adapter_id)).first()
        if known is not None:
            return known
        task = session.get_one(Task, evaluation.task_id)
        decision = gate.decide(evaluate.count(session, evaluation), _policy(task))
        if evaluation.kind == Kind.TEXT:
            decision = Decision(
                Outcome.INSUFFICIENT,
                "The answers are free text, which takes a judge to compare and this version has none. "
                f"A person can read the items and promote. Word for word: {decision.reason}",
                decision.numbers,
            )
        verdict = Verdict(
            task_id=task.id,
            adapter_id=evaluation.adapter_id,
            evaluation_id=evaluation.id,
            outcome=decision.outcome,
            reason=decision.reason,
            numbers={**decision.numbers, "kind": evaluation.kind},
        )
        session.add(verdict)
        passed = decision.outcome == Outcome.PASSED
        adapter = session.get_one(Adapter, evaluation.adapter_id)
        adapter.status = AdapterStatus.ACCEPTED if passed else AdapterStatus.REFUSED
        audit.record(session, "distill", "verdict", adapter.id, {"outcome": decision.outcome, **verdict.numbers})
        session.flush()
        card.publish(session, adapter, settings)  # before it is committed: who is killed then judges once more
    return verdict


def advise(db: Database, verdict: Verdict, base: Path, settings: DistillSettings, check: Callable[[], None]) -> None:
    """Say what more data would do, where the policy asks. The verdict stands, whatever comes of it. Raises TrainerKilled."""
    with db.read() as session:
        policy = _policy(session.get_one(Task, verdict.task_id))
        if not advice.is_due(session, verdict, policy):
            return
        run_id = session.get_one(Adapter, verdict.adapter_id).run_id
    try:
        advice.measure(db, verdict, base, policy, settings, check)
    except (runs.RunFailed, OSError) as failure:
        log.warning("%s: no learning curve: %s", verdict.task_id, failure)
        advice.give_up(db, run_id, str(failure))


def _half_advised(db: Database, task_id: str, engine: Engine) -> Verdict | None:
    """The verdict whose learning curve was begun and is not at its end; one of another base model's is given up."""
    with db.read() as session:
        curve = advice.unfinished(session, task_id)
        if curve is None:
            return None
        run = session.get_one(Run, curve.run_id)
        judged = select(Verdict).join(Adapter, col(Adapter.id) == col(Verdict.adapter_id)).where(Adapter.run_id == run.id)
        verdict = session.exec(judged).first()
    if verdict is None or run.base_model != engine.base_model:
        advice.give_up(db, run.id, f"vLLM has {engine.base_model} now")
        return None
    return verdict


def _begin(db: Database, task_id: str, base_model: str, settings: DistillSettings) -> tuple[Run | Search, Dataset]:
    """The run or search that is not at its end, or one of the pairs as they are now. Raises NotTrainable, NotReady, RunFailed."""
    with db.read() as session:
        task = session.get_one(Task, task_id)
        run, searching = runs.unfinished(session, task_id), search.unfinished(session, task_id)
    other = "it was begun for the base model {}, and vLLM has {} now"
    if run is not None and run.status != RunStatus.SUCCEEDED and run.base_model != base_model:
        runs.fail(db, run.id, other.format(run.base_model, base_model), settings)
        run = None
    if searching is not None and searching.base_model != base_model:
        search.fail(db, searching.id, other.format(searching.base_model, base_model), settings)
        searching = None
    if begun := run or searching:
        with db.read() as session:
            return begun, session.get_one(Dataset, begun.dataset_id)
    try:
        choices = recipe.load(settings.recipe)
    except recipe.BadRecipe as bad:
        raise NotReady(str(bad)) from bad
    policy, again = _policy(task), task.train_asked_at is not None
    try:
        dataset = datasets.freeze(db, task_id, policy, settings)
    except OSError as error:
        why = f"the dataset cannot be written to {settings.artifacts / task_id}: {error}"
        with db.begin() as session:
            audit.record(session, "distill", "training failed", task_id, {"error": why})  # there is no run yet that could say so
        raise runs.RunFailed(why) from error
    with db.begin() as session:
        if search.is_due(policy, dataset):
            return search.open_search(session, dataset, base_model, choices, policy, settings, again=again), dataset
        return runs.open_run(session, dataset, base_model, choices, again=again), dataset


def _search(db: Database, begun: Search, base: Path, settings: DistillSettings, check: Callable[[], None]) -> Run:
    with db.read() as session:
        policy = _policy(session.get_one(Task, begun.task_id))
    try:
        return search.run(db, begun.id, base, policy, settings, check)
    except OSError as error:
        search.fail(db, begun.id, str(error), settings)
        raise runs.RunFailed(str(error)) from error


def _policy(task: Task) -> policy.Policy:
    try:
        return policy.of(task)
    except ValidationError as error:
        raise NotReady(f"the policy of {task.name} cannot be read; set it again: {error}") from error


def _engine(db: Database) -> Engine:
    """The engine's row, once its base model is prepared. Raises NotReady with what to do."""
    with db.read() as session:
        engine = session.exec(select(Engine).order_by(col(Engine.heartbeat_at).desc())).first()
    if engine is None:
        raise NotReady("no vLLM is known: start it with `stillroom serving`, or everything with `stillroom up`")
    if engine.status == EngineStatus.FAILED:
        raise NotReady(f"vLLM cannot start: {engine.detail}")
    if not engine.base_path:
        raise NotReady("the base model is still being prepared")
    return engine


def _url(engine: Engine) -> str:
    if not engine.url or engine.status != EngineStatus.READY:
        raise NotReady(f"vLLM is {engine.status}: {engine.detail or engine.status.sentence}")
    return engine.url


def _wait_until_staged(db: Database, adapter: Adapter, settings: DistillSettings, check: Callable[[], None]) -> str | None:
    """Wait for serving to load the candidate: None when it is there; else why it will never be."""
    give_up = time.monotonic() + settings.stage_timeout
    while time.monotonic() < give_up:
        with db.read() as session:
            rollout = session.exec(select(Rollout).where(Rollout.adapter_id == adapter.id)).first()
            verdict = session.exec(select(Verdict.id).where(Verdict.adapter_id == adapter.id)).first()
        if verdict is not None:
            return None
        if rollout is not None:
            gone = {RolloutStage.REFUSED, RolloutStage.RETIRED, RolloutStage.ROLLED_BACK}
            return f"it is {rollout.stage}: {rollout.detail}" if rollout.stage in gone else None
        check()
        time.sleep(0.5)
    raise NotReady(f"serving has not loaded {adapter.id} within {settings.stage_timeout:.0f} s: is `stillroom serving` running?")


def _refuse(db: Database, adapter_id: str, why: str) -> None:
    """The end of an adapter that gets no verdict."""
    log.warning("%s gets no verdict: %s", adapter_id, why)
    with db.begin() as session:
        session.get_one(Adapter, adapter_id).status = AdapterStatus.REFUSED
        audit.record(session, "distill", "adapter", adapter_id, {"status": AdapterStatus.REFUSED, "why": why})
