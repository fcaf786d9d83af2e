"""A budgeted search for a task's best recipe: successive halving over shares of the rows, judged on the validation rows.

Trial 0 is the usual recipe and goes all the way; others follow as long as the budget lasts, and climb from an eighth of the rows to
all of them while they are among the better half that got there (Jamieson & Talwalkar 2016; asynchronous as in Li et al. 2020,
arXiv 1810.05934, by optuna). Trials and what came of their rungs are rows: a search that was killed makes the same moves again,
without the trainings, and goes on. The gate's holdout is never looked at.
"""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlmodel import Session, col, select

from distill import curve, datasets, estimate, gate, pareto, runs, scoring, stripping
from distill.agreement import Kind
from distill.pareto import Option
from distill.recipe import Recipe
from distill.runs import RunFailed
from distill.settings import DistillSettings
from store import audit
from store.columns import now
from store.policy import Policy
from store.session import Database
from store.states import RunPurpose, SearchStatus, TrialStatus
from store.tables import Dataset, Run, Search, Trial, Verdict

log = logging.getLogger("stillroom.distill")
SHARES = curve.SHARES  #: so that what was searched with is a learning curve too
MOST_TRIALS = 40
BY_CHANCE = 6  #: trials, before what is known of the others is made use of
LEARNING_RATES = 5.0  #: up to so many times the usual one, and down to so small a part
EPOCHS = 4


def is_due(policy: Policy, dataset: Dataset) -> bool:
    """Whether to search before training on this dataset: the policy's word, or the number of rows; and something to judge by."""
    if policy.search == "off" or (policy.search == "auto" and dataset.train_rows < policy.search_rows):
        return False
    return dataset.validation_rows >= scoring.LEAST_VALIDATION


def unfinished(session: Session, task_id: str) -> Search | None:
    """The task's search that is under way."""
    return session.exec(select(Search).where(Search.task_id == task_id, Search.status == SearchStatus.RUNNING)).first()


def open_search(
    session: Session, dataset: Dataset, base_model: str, recipe: Recipe, policy: Policy, settings: DistillSettings, *, again: bool
) -> Search:
    """The search on this dataset that begins with this recipe: the known one, or a new one. One that failed is resumed if `again`.

    Raises RunFailed for one that failed, if not.
    """
    same = select(Search).where(Search.dataset_id == dataset.id, Search.base_model == base_model)
    known = session.exec(same.where(Search.recipe_hash == recipe.hash())).first()
    if known is not None:
        if known.status == SearchStatus.FAILED and not again:
            raise RunFailed(f"these pairs were searched on before and it failed; ask for a training to try it again: {known.error}")
        if known.status == SearchStatus.FAILED:
            known.status, known.error, known.finished_at = SearchStatus.RUNNING, None, None
            for trial in _trials(session, known.id):
                session.delete(trial)
        return known
    ranks = {rank for rank in (4, 8, 16, 32, 64) if rank <= settings.max_lora_rank} | {recipe.rank}
    search = Search(
        task_id=dataset.task_id,
        dataset_id=dataset.id,
        base_model=base_model,
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe.hash(),
        space={
            "learning_rate": [recipe.learning_rate / LEARNING_RATES, recipe.learning_rate * LEARNING_RATES],
            "epochs": [1, max(EPOCHS, recipe.epochs)],
            "rank": sorted(ranks),
            "base_model": [base_model, *(base for base in policy.search_bases if base != base_model)],
            "strip": [False, True] if stripping.is_due(policy, dataset.train_rows) else [recipe.strip],
        },
        budget_seconds=_budget(policy, settings),
    )
    session.add(search)
    session.flush()
    audit.record(session, "distill", "search", search.id, {"dataset": dataset.id, "space": search.space})
    return search


def run(db: Database, search_id: str, base: Path, policy: Policy, settings: DistillSettings, check: Callable[[], None]) -> Run:
    """Search from where it got to, and return the choice: a candidate's run, trained. `base`: the engine's model folder.

    `check` raises if this process must stop. Raises RunFailed if there is nothing to choose from, TrainerKilled.
    """
    with db.read() as session:
        search = session.get_one(Search, search_id)
        dataset = session.get_one(Dataset, search.dataset_id)
        if search.run_id is not None:
            return session.get_one(Run, search.run_id)
    try:
        datasets.check_whole(dataset, settings)
        return _Search(db, search, dataset, base, policy, settings, check).run()
    except (RunFailed, datasets.Damaged) as failed:
        fail(db, search_id, str(failed), settings)
        raise RunFailed(str(failed)) from failed


def fail(db: Database, search_id: str, why: str, settings: DistillSettings) -> None:
    """End a search without a choice; what its trials have left is deleted."""
    with db.begin() as session:
        search = session.get_one(Search, search_id)
        search.status, search.error, search.finished_at = SearchStatus.FAILED, why, now()
        audit.record(session, "distill", "search failed", search_id, {"error": why})
        trials = _trials(session, search_id)
    _sweep(db, trials, set(), settings)


class _Search:
    """One search under way."""

    def __init__(
        self,
        db: Database,
        search: Search,
        dataset: Dataset,
        base: Path,
        policy: Policy,
        settings: DistillSettings,
        check: Callable[[], None],
    ) -> None:
        self.db, self.search, self.dataset, self.policy, self.settings, self.check = db, search, dataset, policy, settings, check
        self.bases = {name: Path(name) for name in search.space["base_model"]} | {search.base_model: base}
        shares = [share for share in SHARES if share == 1 or share * dataset.train_rows >= scoring.LEAST_ROWS]
        self.shares = dict(zip(range(len(SHARES) - len(shares), len(SHARES)), shares, strict=True))  # by rung
        self.usual = Recipe.model_validate(search.recipe)
        self.bits_a_nat: dict[str, float] = {}  # by base model
        from distill.halving import Halving, Space  # here: optuna is for those who search

        self.halving = Halving(Space(**search.space), int(dataset.content_hash[:8], 16), BY_CHANCE)

    def run(self) -> Run:
        with self.db.read() as session:
            known = _trials(session, self.search.id)
        for number in range(MOST_TRIALS):
            if number < len(known):
                self.halving.next(known[number].choices)
                self._climb(known[number])
            elif not self._spent(number):
                self._climb(self._open(number))
        return self._choose()

    def _open(self, number: int) -> Trial:
        usual = {name: self.search.recipe[name] for name in ("learning_rate", "epochs", "rank", "strip")}
        choices = self.halving.next({**usual, "base_model": self.search.base_model} if number == 0 else None)
        changes = {name: choices[name] for name in ("learning_rate", "epochs", "rank", "strip")}
        changes["alpha"] = self.usual.alpha / self.usual.rank * choices["rank"]
        recipe = Recipe.model_validate(self.search.recipe | changes)
        trial = Trial(
            search_id=self.search.id,
            number=number,
            choices=choices,
            base_model=choices["base_model"],
            recipe=recipe.model_dump(mode="json"),
        )
        with self.db.begin() as session:
            session.add(trial)
        log.info("search %s: trial %d: %s", self.search.id, number, choices)
        return trial

    def _climb(self, trial: Trial) -> None:
        """Take a trial up the rungs, those that it has behind it without a training. The usual recipe is never stopped."""
        usual = trial.number == 0
        for place, (rung, share) in enumerate(self.shares.items()):
            if place >= len(trial.rungs):
                if trial.status == TrialStatus.RUNNING and not usual and self._spent(trial.number):
                    self._end(trial, TrialStatus.OUT_OF_BUDGET)
                if trial.status == TrialStatus.RUNNING:
                    try:
                        self._rung(trial, share)
                    except RunFailed as failed:
                        self._end(trial, TrialStatus.FAILED, str(failed))
                if trial.status != TrialStatus.RUNNING:
                    self.halving.end(None, failed=trial.status == TrialStatus.FAILED)
                    return
            good = self.halving.is_good(rung, trial.rungs[place]["loss"])
            if not good and not usual and share < 1:
                self._end(trial, TrialStatus.STOPPED)
                self.halving.end(None)
                return
        self._set_budget(trial)
        self._end(trial, TrialStatus.COMPLETE)
        self.halving.end(trial.rungs[-1]["loss"])

    def _rung(self, trial: Trial, share: float) -> None:
        """Train on a share of the rows and note the loss. Raises RunFailed."""
        base = self.bases[trial.base_model]
        if not (base / "config.json").is_file():
            raise RunFailed(f"{base} is no model folder: it has no config.json")
        began = time.monotonic()
        recipe = Recipe.model_validate(trial.recipe)
        with self.db.begin() as session:
            dataset = session.get_one(Dataset, self.dataset.id)
            opened = runs.open_run(session, dataset, trial.base_model, recipe, again=True, share=share, purpose=RunPurpose.TRIAL)
            session.flush()
        estimate.before(self.db, opened.id, base, self.settings, self.check)
        try:
            trained = runs.complete(self.db, opened.id, base, self.settings, self.check)
        except RunFailed as failed:
            runs.fail(self.db, opened.id, str(failed), self.settings)
            raise
        loss = self._loss(trained, base, exactly=share == 1)
        seconds = max(time.monotonic() - began, trained.train_seconds or 0.0)
        with self.db.begin() as session:
            trial.rungs = [*trial.rungs, {"share": share, "run_id": trained.id, "loss": loss, "seconds": round(seconds, 1)}]
            session.merge(trial)
            self.search.spent_seconds = round(self.search.spent_seconds + seconds, 1)
            session.get_one(Search, self.search.id).spent_seconds = self.search.spent_seconds

    def _loss(self, trained: Run, base: Path, *, exactly: bool) -> float:
        """Bits a character of the validation rows' answers: the trainer's loss, which is by tokens, where it can be converted."""
        factor = self.bits_a_nat.get(trained.base_model)
        if trained.validation_loss is not None and factor is not None and not exactly:
            return trained.validation_loss * factor
        found = scoring.of(self.db, trained.id, base, self.settings, self.check)
        self.bits_a_nat[trained.base_model] = found.bits / found.loss if found.loss else 0.0
        return found.bits

    def _end(self, trial: Trial, status: TrialStatus, error: str | None = None) -> None:
        if trial.status == status:
            return
        trial.status, trial.error = status, error
        with self.db.begin() as session:
            session.merge(trial)
        log.info("search %s: trial %d is %s%s", self.search.id, trial.number, status, f": {error}" if error else "")

    def _set_budget(self, trial: Trial) -> None:
        """Where the policy names no time: that of some trainings by the usual recipe, from the first one that was made."""
        if self.search.budget_seconds is not None:
            return
        seconds = trial.rungs[-1]["seconds"] * self.usual.epochs / trial.recipe["epochs"]
        with self.db.begin() as session:
            self.search.budget_seconds = round(self.policy.search_trainings * seconds, 1)
            session.get_one(Search, self.search.id).budget_seconds = self.search.budget_seconds

    def _spent(self, number: int) -> bool:
        """Whether to stop: the budget is used up, or the first trials all failed."""
        if self.search.budget_seconds is None:
            return number >= BY_CHANCE
        return number > 0 and self.search.spent_seconds >= self.search.budget_seconds

    def _choose(self) -> Run:
        """The cheapest that passes becomes a candidate; the front is kept, all other adapters are deleted."""
        with self.db.read() as session:
            trials = _trials(session, self.search.id)
            self_agreement = _self_agreement(session, self.search.task_id)
        whole = {trial.number: trial for trial in trials if trial.status == TrialStatus.COMPLETE}
        scores = {
            number: scoring.of(self.db, trial.rungs[-1]["run_id"], self.bases[trial.base_model], self.settings, self.check)
            for number, trial in whole.items()
        }
        kind = scoring.kind(self.dataset, self.settings)
        holdout = max(gate.ROWS, min(self.dataset.holdout_rows, self.policy.holdout_max))  # as if there were enough rows to tell
        chances = {
            number: None if kind is Kind.TEXT
            else curve.chance_seen(score.judged - score.exact, score.judged, holdout, self.policy, self_agreement)
            for number, score in scores.items()
        }  # fmt: skip
        points = [
            Option(
                name=str(number),
                quality=None if kind is Kind.TEXT else score.exact / score.judged,
                bits=score.bits,
                cost=_typical(number, whole, {n: each.answer_seconds for n, each in scores.items()}),
                latency_ms=_typical(number, whole, {n: each.latency_ms for n, each in scores.items()}),
                chance=chances[number],
                servable=whole[number].base_model == self.search.base_model,
            )
            for number, score in scores.items()
        ]
        place = pareto.choose(points)
        if place is None:
            why = "; ".join(dict.fromkeys(trial.error for trial in trials if trial.error)) or "no trial went all the way"
            raise RunFailed(f"the search found nothing to choose from: {why}")
        chosen = whole[int(points[place].name)]
        if self.policy.curve != "never":
            for rung in chosen.rungs:  # they are its learning curve
                scoring.of(self.db, rung["run_id"], self.bases[chosen.base_model], self.settings, self.check)
        on_front = {int(point.name) for point, on in zip(points, pareto.front(points), strict=True) if on}
        plot = self.settings.artifacts / "searches" / self.search.id / "pareto.png"
        pareto.plot(points, place, f"search {self.search.id}", plot)
        with self.db.begin() as session:
            for trial in _trials(session, self.search.id):
                trial.front, trial.chance = trial.number in on_front, chances.get(trial.number)
            run = session.get_one(Run, chosen.rungs[-1]["run_id"])
            runs.register(session, run, self.settings)
            search = session.get_one(Search, self.search.id)
            search.status, search.finished_at, search.run_id = SearchStatus.DONE, now(), run.id
            search.plot = str(plot.relative_to(self.settings.home_path))
            search.says = _says(chosen, points, place, trials)
            audit.record(session, "distill", "search done", search.id, {"run": run.id, "says": search.says})
        _sweep(self.db, trials, on_front | {chosen.number}, self.settings)
        return run


def _sweep(db: Database, trials: Sequence[Trial], kept: set[int], settings: DistillSettings) -> None:
    """Delete what the trials' runs have left, but for the last of those that are kept."""
    for trial in trials:
        for rung in trial.rungs[:-1] if trial.number in kept else trial.rungs:
            with db.read() as session:
                run = session.get_one(Run, rung["run_id"])
            runs.discard(run, settings)


def _trials(session: Session, search_id: str) -> list[Trial]:
    return list(session.exec(select(Trial).where(Trial.search_id == search_id).order_by(col(Trial.number))))


def _budget(policy: Policy, settings: DistillSettings) -> float | None:
    """Seconds; None for as many usual trainings as the policy says."""
    limits = [policy.search_hours * 3600] if policy.search_hours is not None else []
    if policy.search_usd is not None and settings.compute_usd_hour:
        limits.append(policy.search_usd / settings.compute_usd_hour * 3600)
    return min(limits, default=None)


def _self_agreement(session: Session, task_id: str) -> float:
    """The teacher's with itself, as the last verdict found it; 1 where nobody asked it again."""
    last = session.exec(select(Verdict).where(Verdict.task_id == task_id).order_by(col(Verdict.created_at).desc())).first()
    return float(last.numbers.get("self_agreement", 1.0)) if last is not None else 1.0


def _typical(number: int, trials: dict[int, Trial], measured: dict[int, float]) -> float:
    """Median of the trials that answer alike: of the same base model, shown the same prompt. The noise is the machine's."""
    likes = {n: (trial.base_model, trial.choices["strip"]) for n, trial in trials.items()}
    return statistics.median(measured[n] for n, like in likes.items() if like == likes[number])


def _says(chosen: Trial, points: Sequence[Option], place: int, trials: Sequence[Trial]) -> str:
    """In words, why that one."""
    point, passing = points[place], [p for p in points if p.chance is not None and p.chance >= pareto.LIKELY]
    what = ", ".join(f"{name} {chosen.choices[name]:g}" for name in ("learning_rate", "epochs", "rank"))
    quality = f"loss {point.bits:.3f} bits a character" if point.quality is None else f"{point.quality:.1%} of the answers exact"
    why = "the best on the validation rows; none of them is likely to pass the gate"
    if point.quality is None:
        why = "the cheapest whose loss is as low as the best; free text takes a judge to say whether it passes"
    elif passing:
        why = f"the cheapest of {len(passing)} that are likely to pass the gate"
    stripped = " and without the long prompt" if chosen.choices["strip"] else ""
    says = f"Of {len(trials)} trials, number {chosen.number} ({what}{stripped}) is {why}: {quality}, "
    says += f"{point.latency_ms:.0f} ms an answer."
    usual = next((p for p in points if p.name == "0"), None)
    if usual is not None and chosen.number != 0 and usual.quality is not None:
        says += f" The usual recipe: {usual.quality:.1%}, {usual.latency_ms:.0f} ms."
    others = [p for p in passing if not p.servable and p.cost < point.cost * (1 - pareto.ALIKE)]
    others += [p for p in passing if not p.servable and (point.chance or 0.0) < pareto.LIKELY and p not in others]
    for other in others[:1]:
        base = next(trial.base_model for trial in trials if str(trial.number) == other.name)
        says += (
            f" With the base model {base} number {other.name} would do at {other.cost / point.cost:.0%} of the cost of an answer."
        )
    return says
