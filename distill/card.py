"""Model cards: what a person should know of an adapter, as the README.md of its folder. Made of rows alone, so at any time anew.

The card is the one file of an adapter's folder that is not among what is hashed: it is written when the adapter is registered, and
again when there is a verdict. All others never change.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from store import prompts
from store.settings import StoreSettings
from store.states import Outcome
from store.tables import Adapter, Dataset, Evaluation, Run, Task, Verdict

log = logging.getLogger("stillroom.distill")

CARD = "README.md"  #: in an adapter's folder
_LICENSE = re.compile(r"^license:\s*(\S+)\s*$", re.MULTILINE)
_OUTCOMES = {
    Outcome.PASSED: "passed the gate",
    Outcome.FAILED: "did not pass the gate",
    Outcome.INSUFFICIENT: "could not be judged: too few rows",
}


@dataclass(frozen=True)
class Facts:
    """What the card is made of."""

    adapter: Adapter
    task: Task
    run: Run
    dataset: Dataset
    evaluation: Evaluation | None
    verdict: Verdict | None
    license: str | None  #: of the base model, as its own card says


def publish(session: Session, adapter: Adapter, settings: StoreSettings) -> None:
    """Write the adapter's card as things are now, all at once. That it cannot be is logged: it can be made at any time."""
    folder = settings.home_path / adapter.path
    partial = folder.parent / f".{folder.name}-{CARD}"  # not within: serving looks at what is there
    try:
        partial.write_text(render(collect(session, adapter, settings)), encoding="utf-8")
        partial.replace(folder / CARD)
    except OSError as error:
        partial.unlink(missing_ok=True)
        log.warning("the card of %s cannot be written: %s", adapter.id, error)


def collect(session: Session, adapter: Adapter, settings: StoreSettings) -> Facts:
    """The facts of an adapter's card."""
    run = session.get_one(Run, adapter.run_id)
    base = _base(settings.home_path / adapter.path)
    return Facts(
        adapter,
        session.get_one(Task, adapter.task_id),
        run,
        session.get_one(Dataset, run.dataset_id),
        session.exec(select(Evaluation).where(Evaluation.adapter_id == adapter.id)).first(),
        session.exec(select(Verdict).where(Verdict.adapter_id == adapter.id)).first(),
        None if base is None else license_of(base),
    )


def license_of(base: Path) -> str | None:
    """What the base model's card, or the folder's license file, calls its licence; None if they say nothing."""
    card = base / "README.md"
    if card.is_file() and (said := _LICENSE.search(card.read_text(encoding="utf-8", errors="replace").partition("\n---\n")[0])):
        return said[1]
    texts = [file for file in sorted(base.glob("LICENSE*")) if file.is_file()]
    first = next((line.strip() for file in texts[:1] for line in file.read_text(errors="replace").splitlines() if line.strip()), "")
    return first[:80] or None


def render(facts: Facts) -> str:
    """The card: Hugging Face's front matter, then Markdown."""
    adapter, run, dataset = facts.adapter, facts.run, facts.dataset
    sections = {
        "What it does": _purpose(facts),
        "How it did": _verdict(facts),
        "Data": [
            f"- dataset `{dataset.id}`, SHA-256 `{dataset.content_hash}`, {dataset.status}: {dataset.status.sentence}",
            f"- {dataset.train_rows:,} to train on, {dataset.validation_rows:,} to choose by, {dataset.holdout_rows:,} held out",
            f"- the answers are those of `{facts.task.teacher_model or 'the teacher'}`, and people's corrections",
        ],
        "Training": [
            f"- base model `{run.base_model}`, run `{run.id}`" + (f", {run.share:.0%} of the rows" if run.share < 1 else ""),
            *(f"- {name}: {_short(value)}" for name, value in run.recipe.items() if value is not None),
            *_measured(run),
            f"- recipe SHA-256 `{run.recipe_hash}`",
        ],
        "Files": [f"- `{name}` SHA-256 `{sha256}`" for name, sha256 in (adapter.files or {"weights": adapter.sha256}).items()],
        "Limits": _limits(facts),
    }
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items() if lines)
    return f"{_front(facts)}\n# {adapter.id}\n\n{body}\n"


def _base(folder: Path) -> Path | None:
    """The base model's folder, as the adapter's config names it; None if it is not there."""
    try:
        named = json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError):
        return None
    return Path(named) if isinstance(named, str) and Path(named).is_dir() else None


def _front(facts: Facts) -> str:
    lines = ["---", "library_name: peft", f"base_model: {_yaml(facts.run.base_model)}", "pipeline_tag: text-generation"]
    lines += ["license: other", f"license_name: {_yaml(facts.license or 'that of the base model')}"]
    return "\n".join([*lines, "tags: [stillroom, distillation, lora]", "---", ""])


def _purpose(facts: Facts) -> list[str]:
    lines = [f"Answers one task, {facts.task.name!r} (`{facts.task.id}`), in place of its teacher. It is no general assistant."]
    if facts.adapter.transform is not None:
        head = prompts.read(facts.adapter.transform).head
        cut = sum(len(text) for piece in head for text in piece.fixed)
        lines.append(
            f"It was trained without the fixed part of the task's prompts ({cut:,} characters): show it only what "
            f"`{prompts.TRANSFORM}` leaves of a request."
        )
    return lines


def _verdict(facts: Facts) -> list[str]:
    verdict, evaluation = facts.verdict, facts.evaluation
    if verdict is None:
        return ["It has not been judged yet."]
    says = f"It {_OUTCOMES[verdict.outcome]} on {verdict.created_at:%Y-%m-%d}. {verdict.reason}"
    if evaluation is not None:
        says += f" Evaluation `{evaluation.id}`, {evaluation.answered:,} of {evaluation.total:,} answered."
    numbers = [f"| {name} | {_short(value)} |" for name, value in verdict.numbers.items() if not isinstance(value, dict | list)]
    return [says, "", "| | |", "|---|---|", *numbers]


def _measured(run: Run) -> list[str]:
    loss = None if run.loss is None else f"- last training loss {run.loss:.4g}"
    validation = None if run.validation_loss is None else f"- validation loss {run.validation_loss:.4g}"
    seconds = None if run.train_seconds is None else f"- {run.train_seconds:,.0f} s, {run.rows_per_second or 0:.3g} rows/s"
    return [line for line in (loss, validation, seconds) if line is not None]


def _limits(facts: Facts) -> list[str]:
    licence = f"`{facts.license}`" if facts.license else "not stated in its folder"
    lines = [
        f"- The base model's licence ({licence}) holds for what is made with it; the teacher's terms may forbid training on its "
        "answers, or publishing what was. Both are the owner's to check.",
        "- It is as right as its teacher is on this task, and was judged by agreement with it, greedy, in vLLM, under the base "
        "model's chat template. Other prompts, languages, sampling or engines were not looked at.",
        "- What people wrote in the training data may be in its weights: it is for those who may see that data.",
    ]
    if facts.adapter.stale_since is not None:
        says = f"- **Stale since {facts.adapter.stale_since:%Y-%m-%d}**: something that it learned from was erased. Train it again."
        lines.insert(0, says)
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _yaml(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
