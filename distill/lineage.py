"""Lineage: adapter -> run -> dataset -> pairs -> captures, with a hash at each hop, and the check of them all.

Each of these proves the next:

    the adapter's row    has the SHA-256 of each file in its folder but the card, of the weights and of `lineage.json` among them
    lineage.json         names run, recipe and dataset by their hashes: the folder by itself says what it was made of
    the dataset's row    has the hash of its files, in which each row names its pair
    a pair's row         has the hash of its content, and that of the capture's bodies it was made of
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from distill import content, datasets
from distill.card import CARD
from distill.datasets import Row
from store import policy, prompts
from store.blobs import BadFrame
from store.session import Database
from store.settings import StoreSettings
from store.states import DatasetStatus, ReviewKind
from store.tables import Adapter, Capture, Dataset, DatasetPair, Pair, Review, Run, Task

LINEAGE = "lineage.json"
SHOWN = 10  #: of what is broken in a hop
BATCH = 500


class NoAdapter(LookupError):
    """There is no such adapter."""


@dataclass
class Hop:
    """What was checked on the way from one thing to what it was made of."""

    name: str
    checked: int = 0
    broken: list[str] = field(default_factory=list)  #: the first SHOWN of what is not as it was
    failures: int = 0
    notes: list[str] = field(default_factory=list)  #: what cannot be checked, and why

    def check(self, right: bool, says: str) -> bool:
        """Count one thing; `says` what is wrong if it is."""
        self.checked += 1
        if not right:
            self.failures += 1
            self.broken += [says] if len(self.broken) < SHOWN else []
        return right


def seal(folder: Path, run: Run, dataset: Dataset) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Finish an adapter's folder before it gets its row: (the hash of each of its files, its transform). As often as one likes."""
    said = {
        "run": run.id,
        "base_model": run.base_model,
        "recipe_sha256": run.recipe_hash,
        "dataset": dataset.id,
        "dataset_sha256": dataset.content_hash,
    }
    _write(folder / LINEAGE, json.dumps(said, indent=2).encode())
    learned, kept = folder.parent / prompts.TRANSFORM, folder / prompts.TRANSFORM
    if learned.is_file():  # what the run was trained with
        _write(kept, learned.read_bytes())
    return hashes(folder), json.loads(kept.read_bytes()) if kept.is_file() else None


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file but the card, by name."""
    return {file.name: _sha256(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != CARD}


def verify(db: Database, adapter_id: str, settings: StoreSettings, tell: Callable[[Hop], None] = lambda _: None) -> list[Hop]:
    """Check every hash from the adapter back to the captures. `tell` hears of each hop when it is done. Raises NoAdapter.

    Nothing is changed. What was erased since is a note, not a failure. 100,000 pairs take about a minute.
    """
    with db.read() as session:
        adapter = session.get(Adapter, adapter_id)
        if adapter is None:
            raise NoAdapter(adapter_id)
        run = session.get_one(Run, adapter.run_id)
        dataset = session.get_one(Dataset, run.dataset_id)
    hops = []
    for hop in _hops(db, adapter, run, dataset, settings):
        hops.append(hop)
        tell(hop)
    return hops


def learners(session: Session, capture_ids: Sequence[str]) -> list[Adapter]:
    """The adapters that learned from, or were judged on, one of these captures, oldest first."""
    held = select(DatasetPair.dataset_id).join(Pair, col(Pair.id) == col(DatasetPair.pair_id))
    held = held.where(col(Pair.capture_id).in_(capture_ids))
    made = select(Adapter).join(Run, col(Run.id) == col(Adapter.run_id)).where(col(Run.dataset_id).in_(held))
    return list(session.exec(made.order_by(col(Adapter.created_at), col(Adapter.id))))


def _hops(db: Database, adapter: Adapter, run: Run, dataset: Dataset, settings: StoreSettings) -> Iterator[Hop]:
    yield _files(adapter, settings.home_path / adapter.path)
    yield _run(adapter, run, dataset, settings.home_path / adapter.path)
    files = Hop("dataset: its files")
    yield files
    if dataset.status == DatasetStatus.ERASED:
        files.notes.append(f"{dataset.id}: {dataset.status.sentence} What is behind it cannot be checked any more.")
        return
    try:
        datasets.check_whole(dataset, settings)
    except datasets.Damaged as damaged:
        files.check(False, str(damaged))
        return
    files.check(True, "")
    members, contents, captures = Hop("dataset -> pairs: the same ones"), Hop("pairs: their content"), Hop("pairs -> captures")
    with db.read() as session:
        wanted = set(session.exec(select(DatasetPair.pair_id).where(DatasetPair.dataset_id == dataset.id)))
    rows = (row for name in datasets.FILES for row in datasets.read(settings.home_path / dataset.path, name))
    while some := list(islice(rows, BATCH)):
        for row in some:
            members.check(row.pair_id in wanted, f"{row.pair_id} is in the files and not among the dataset's pairs")
            wanted.discard(row.pair_id)
        with db.read() as session:
            _pairs(session, some, contents, captures)
    for pair_id in wanted:
        members.check(False, f"{pair_id} is among the dataset's pairs and not in the files")
    yield from (members, contents, captures)


def _files(adapter: Adapter, folder: Path) -> Hop:
    hop = Hop("adapter: its files")
    if not folder.is_dir():
        hop.check(False, f"there is no folder {folder}")
        return hop
    found = hashes(folder)
    known = adapter.files
    if not known:
        hop.notes.append("it was made before its files were hashed: only the weights are checked")
        known = {"adapter_model.safetensors": adapter.sha256}
        found = {name: found[name] for name in known if name in found}
    for name in sorted({*known, *found}):
        hop.check(known.get(name) == found.get(name), f"{name} is not what it was when the adapter was made")
    try:
        stored = None if adapter.transform is None else prompts.read(adapter.transform)
        file = folder / prompts.TRANSFORM
        kept = prompts.read(json.loads(file.read_bytes())) if file.is_file() else None
        hop.check(stored == kept, f"{prompts.TRANSFORM} is not what the adapter's row says")
    except ValueError as error:
        hop.check(False, f"{prompts.TRANSFORM}: {error}")
    return hop


def _run(adapter: Adapter, run: Run, dataset: Dataset, folder: Path) -> Hop:
    hop = Hop("adapter -> run -> dataset")
    if run.share == 1:  # else the share is hashed with it
        canonical = json.dumps(run.recipe, sort_keys=True, separators=(",", ":"))
        hop.check(hashlib.sha256(canonical.encode()).hexdigest() == run.recipe_hash, f"the recipe of {run.id} is not what it was")
    if LINEAGE not in adapter.files:
        hop.notes.append(f"it has no {LINEAGE}: what its folder was made of is known from rows alone")
        return hop
    try:
        said = json.loads((folder / LINEAGE).read_bytes())
    except (OSError, ValueError) as error:
        hop.check(False, f"{LINEAGE} cannot be read: {error}")
        return hop
    rows = {
        "run": run.id, "base_model": adapter.base_model, "recipe_sha256": run.recipe_hash, "dataset": dataset.id,
        "dataset_sha256": dataset.content_hash,
    }  # fmt: skip
    for name, value in rows.items():
        hop.check(said.get(name) == value, f"{LINEAGE} says {name} {said.get(name)}, and the rows say {value}")
    return hop


def _pairs(session: Session, rows: Sequence[Row], contents: Hop, captures: Hop) -> None:
    """Check some rows of a dataset's files against their pairs, and those against their captures."""
    ids = [row.pair_id for row in rows]
    found = {pair.id: pair for pair in session.exec(select(Pair).where(col(Pair.id).in_(ids)))}
    behind = session.exec(select(Capture).where(col(Capture.id).in_([pair.capture_id for pair in found.values()])))
    bodies = {capture.id: capture for capture in behind}
    for row in rows:
        pair = found.get(row.pair_id)
        if pair is None:
            contents.check(False, f"{row.pair_id} is gone")
            continue
        prompt = (row.messages, row.tools, row.response_format)
        same = prompt == (pair.messages, pair.tools, pair.response_format) and pair.content_hash == content.of_pair(pair)
        answer = row.completion == pair.completion or row.completion in _corrections(session, pair)
        contents.check(same and answer, f"{pair.id} is not what the dataset has, or not what it was when it was made")
        _capture(captures, pair, bodies.get(pair.capture_id))


def _capture(hop: Hop, pair: Pair, capture: Capture | None) -> None:
    if capture is None:
        hop.check(False, f"{pair.capture_id} is gone")
    elif not pair.capture_sha256:
        note = "some pairs were made before captures were hashed"
        hop.notes += [note] if note not in hop.notes else []
    else:
        try:
            hop.check(capture.digest() == pair.capture_sha256, f"{capture.id} is not what {pair.id} was made of")
        except BadFrame as error:
            hop.check(False, f"{capture.id} cannot be read: {error}")


def _corrections(session: Session, pair: Pair) -> list[Any]:
    """What people said the answer should be, of this pair and its duplicates; as it is and, where the pair is redacted, as that."""
    same = select(Review.correction).join(Pair, col(Pair.capture_id) == col(Review.capture_id))
    same = same.where(Pair.task_id == pair.task_id, Pair.content_hash == pair.content_hash, Review.kind == ReviewKind.CORRECT)
    said = [correction for correction in session.exec(same) if correction is not None]
    task, capture = session.get(Task, pair.task_id), session.get(Capture, pair.capture_id)
    if task is None or capture is None or not task.policy.get("redact"):
        return said
    from distill import pairs  # only here: `due` asks this file's users, and pairs take much to load

    return said + [pairs.redacted(capture, policy.of(task), dict(correction)) for correction in said]


def _write(file: Path, content: bytes) -> None:
    """All of it or nothing."""
    partial = file.with_name(f".{file.name}")
    with partial.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
