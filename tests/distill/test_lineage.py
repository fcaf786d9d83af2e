"""From an adapter back to its captures: every hash, and what breaks it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from distill import lineage
from distill.settings import DistillSettings
from store.capture import ROWS
from store.prompts import Piece, Transform
from store.session import Database
from store.states import DatasetStatus
from store.tables import Adapter, Dataset, DatasetPair, Pair, Run
from tests import chain

RULES = "You sort letters into departments. Answer with one word, the department, in lower case. Never explain your answer."


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    return DistillSettings(home=tmp_path)


@pytest.fixture
def adapter(db: Database, settings: DistillSettings) -> Adapter:
    task_id = chain.write(db, [chain.exchange(number, RULES) for number in range(80)])
    chain.pair(db, task_id)
    return chain.train(db, chain.freeze(db, task_id, settings), settings, Transform((Piece("system", (RULES,)),)))


def broken(db: Database, adapter: Adapter, settings: DistillSettings) -> list[str]:
    return [hop.name for hop in lineage.verify(db, adapter.id, settings) if hop.failures]


def test_what_is_as_it_was_is_whole_and_all_of_it_is_looked_at(db: Database, adapter: Adapter, settings: DistillSettings) -> None:
    hops = {hop.name: hop for hop in lineage.verify(db, adapter.id, settings)}
    assert [hop.failures for hop in hops.values()] == [0] * 6
    assert [note for hop in hops.values() for note in hop.notes] == []
    with db.read() as session:
        dataset = session.get_one(Dataset, session.get_one(Run, adapter.run_id).dataset_id)
    rows = dataset.train_rows + dataset.validation_rows + dataset.holdout_rows
    assert rows > 60
    assert [hop.checked for hop in hops.values()] == [5, 6, 1, rows, rows, rows]
    assert set(adapter.files) == {"adapter_model.safetensors", "adapter_config.json", "transform.json", "lineage.json"}
    assert adapter.transform == Transform((Piece("system", (RULES,)),)).dump()


def _flip(name: str) -> Callable[[Database, Adapter, Path], None]:
    def flip(_db: Database, adapter: Adapter, home: Path) -> None:
        file = home / adapter.path / name
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)

    return flip


def _dataset_line(db: Database, adapter: Adapter, home: Path) -> None:
    with db.read() as session:
        file = home / session.get_one(Dataset, session.get_one(Run, adapter.run_id).dataset_id).path / "train.jsonl"
    file.write_bytes(file.read_bytes().replace(b"answer 3", b"answer 4", 1))


def _update(table: type, **values: object) -> Callable[[Database, Adapter, Path], None]:
    def update(db: Database, _adapter: Adapter, _home: Path) -> None:
        with db.begin() as session:
            session.execute(sa.update(table).values(**values))

    return update


def _another_capture(db: Database, adapter: Adapter, _home: Path) -> None:
    with db.begin() as session:
        first = session.execute(sa.select(ROWS.c.id).limit(1)).scalar_one()
        session.execute(sa.update(ROWS).where(ROWS.c.id == first).values(packed=None, request=b"{}", response=b"{}"))


def _one_member_less(db: Database, adapter: Adapter, _home: Path) -> None:
    with db.begin() as session:
        one = session.execute(sa.select(DatasetPair.pair_id).limit(1)).scalar_one()
        session.execute(sa.delete(DatasetPair).where(DatasetPair.pair_id == one))


@pytest.mark.parametrize(
    ("change", "hops"),
    [
        (_flip("adapter_model.safetensors"), ["adapter: its files"]),
        (_flip("adapter_config.json"), ["adapter: its files"]),
        (_update(Adapter, transform=None), ["adapter: its files"]),
        (_update(Run, recipe={"rank": 4}), ["adapter -> run -> dataset"]),
        (_update(Dataset, content_hash="0" * 64), ["adapter -> run -> dataset", "dataset: its files"]),
        (_dataset_line, ["dataset: its files"]),
        (_one_member_less, ["dataset -> pairs: the same ones"]),
        (_update(Pair, content_hash="0" * 64), ["pairs: their content"]),
        (_update(Pair, completion={"role": "assistant", "content": "x"}), ["pairs: their content"]),
        (_update(Pair, tools=[{"type": "function"}]), ["pairs: their content"]),
        (_another_capture, ["pairs -> captures"]),
    ],
)
def test_what_is_not_as_it_was_is_found_at_its_hop(
    db: Database, adapter: Adapter, settings: DistillSettings, change: Callable[[Database, Adapter, Path], None], hops: list[str]
) -> None:
    change(db, adapter, settings.home_path)
    assert broken(db, adapter, settings) == hops


def test_the_folder_alone_says_what_it_was_made_of(db: Database, adapter: Adapter, settings: DistillSettings) -> None:
    said = json.loads((settings.home_path / adapter.path / lineage.LINEAGE).read_bytes())
    with db.read() as session:
        run = session.get_one(Run, adapter.run_id)
        assert said["dataset_sha256"] == session.get_one(Dataset, run.dataset_id).content_hash
        assert said["recipe_sha256"] == run.recipe_hash


def test_an_extra_or_missing_file_is_found_and_the_card_may_change(
    db: Database, adapter: Adapter, settings: DistillSettings
) -> None:
    folder = settings.home_path / adapter.path
    (folder / "README.md").write_text("another")
    assert broken(db, adapter, settings) == []
    (folder / "more.json").write_text("{}")
    assert broken(db, adapter, settings) == ["adapter: its files"]


def test_what_is_erased_is_said_and_is_no_failure(db: Database, adapter: Adapter, settings: DistillSettings) -> None:
    _update(Dataset, status=DatasetStatus.ERASED)(db, adapter, settings.home_path)
    hops = lineage.verify(db, adapter.id, settings)
    assert [hop.failures for hop in hops] == [0, 0, 0]
    assert "cannot be checked" in hops[-1].notes[0]


def test_the_adapters_that_learned_from_a_capture_are_known(db: Database, adapter: Adapter, settings: DistillSettings) -> None:
    learned = chain.ready(db, adapter.task_id)[0].capture_id
    with db.read() as session:
        assert [each.id for each in lineage.learners(session, [learned])] == [adapter.id]
        assert lineage.learners(session, ["cap_0"]) == []


def test_an_unknown_adapter_is_said_to_be(db: Database, settings: DistillSettings) -> None:
    with pytest.raises(lineage.NoAdapter):
        lineage.verify(db, "x@v1", settings)
