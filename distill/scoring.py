"""A run's score on the validation rows: measured once, in a process of its own, and kept on the run's row."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill import agreement, datasets, process, runs
from distill.agreement import Kind
from distill.runs import RunFailed
from distill.score import Score
from distill.settings import DistillSettings
from store.session import Database
from store.tables import Dataset, Run

ATTEMPTS = 3  #: of a scoring that is killed
LEAST_ROWS = 32  #: of a training that is compared with others: fewer tell nothing
LEAST_VALIDATION = 20  #: rows to judge it by


def kind(dataset: Dataset, settings: DistillSettings) -> Kind:
    """What the answers are, by the validation rows."""
    rows = list(datasets.read(settings.home_path / dataset.path, "validation"))
    return agreement.detect([row.completion for row in rows], [row.response_format for row in rows])


def of(db: Database, run_id: str, base: Path, settings: DistillSettings, check: Callable[[], None]) -> Score:
    """The score of a run that is trained. `base`: its model folder. Raises RunFailed."""
    with db.read() as session:
        run = session.get_one(Run, run_id)
        dataset = session.get_one(Dataset, run.dataset_id)
    if run.score is not None:
        return Score(**run.score)
    validation = runs.validation_file(dataset, settings)
    if validation is None:
        raise RunFailed("there are no validation rows to judge by")
    command: list[str | Path] = [sys.executable, "-m", "distill.score", "--base", base, "--data", validation]
    command += ["--adapter", settings.run_folder(run.id) / "adapter"]
    if transform := runs.transform_file(run, dataset, settings):
        command += ["--transform", transform]
    found = _measured(command, check)
    with db.begin() as session:
        session.get_one(Run, run_id).score = found
    return Score(**found)


def _measured(command: list[str | Path], check: Callable[[], None]) -> dict[str, Any]:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return process.follow(command, "scoring", check).result
        except process.ProcessFailed as failed:
            raise RunFailed(str(failed)) from failed
        except process.ProcessKilled as killed:
            if attempt == ATTEMPTS:
                raise RunFailed(f"{killed} (for the {attempt}th time; is there enough memory?)") from killed
    raise AssertionError
