"""Model cards: what is in them, and when they are written."""

import json
from pathlib import Path

import pytest
import yaml

from distill import card, pipeline
from distill.settings import DistillSettings
from store.columns import now
from store.prompts import Piece, Transform
from store.session import Database
from store.states import Outcome
from store.tables import Adapter, Verdict
from tests import chain

RULES = "You sort letters into departments. Answer with one word, the department, in lower case. Never explain your answer."


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    return DistillSettings(home=tmp_path)


def trained(db: Database, settings: DistillSettings, transform: Transform | None = None) -> Adapter:
    task_id = chain.write(db, [chain.exchange(number, RULES) for number in range(60)])
    chain.pair(db, task_id)
    dataset = chain.freeze(db, task_id, settings)
    adapter = chain.train(db, dataset, settings, transform)
    chain.evaluate(db, adapter, dataset, settings)
    return adapter


def written(adapter: Adapter, settings: DistillSettings) -> str:
    return (settings.home_path / adapter.path / "README.md").read_text()


def test_a_registered_adapter_has_a_card_with_its_data_recipe_hashes_and_limits(db: Database, settings: DistillSettings) -> None:
    adapter = trained(db, settings, Transform((Piece("system", (RULES,)),)))
    text = written(adapter, settings)
    with db.read() as session:
        facts = card.collect(session, adapter, settings)
    assert facts.dataset.content_hash in text
    assert f"{facts.dataset.train_rows} to train on" in text
    for sha256 in adapter.files.values():
        assert sha256 in text
    assert "learning_rate: 0.0001" in text
    assert "It has not been judged yet." in text
    assert f"({len(RULES)} characters)" in text
    assert "licence (not stated in its folder)" in text
    front = yaml.safe_load(text.split("---")[1])
    assert (front["base_model"], front["library_name"]) == ("smollm2", "peft")


def test_the_verdict_is_in_the_card_when_there_is_one_and_nothing_else_changes(db: Database, settings: DistillSettings) -> None:
    adapter = trained(db, settings)
    folder = settings.home_path / adapter.path
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with db.begin() as session:
        evaluation = card.collect(session, adapter, settings).evaluation
        assert evaluation is not None
    verdict = pipeline.judge(db, evaluation.id, settings)
    text = written(adapter, settings)
    assert verdict.reason in text
    assert f"| n | {verdict.numbers['n']} |" in text
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"README.md"}


def test_each_outcome_and_a_stale_adapter_are_said_in_words(db: Database, settings: DistillSettings) -> None:
    adapter = trained(db, settings)
    with db.read() as session:
        facts = card.collect(session, adapter, settings)
    said = set()
    for outcome in Outcome:
        verdict = Verdict(task_id="t", adapter_id=adapter.id, evaluation_id="e", outcome=outcome, reason="so")
        verdict.numbers = {"n": 7, "z": 1.23456, "x": []}
        text = card.render(card.Facts(**{**facts.__dict__, "verdict": verdict}))
        assert "| z | 1.235 |" in text
        said.add(text.split("## How it did\n\n")[1].split(" on ")[0])
    assert said == {"It passed the gate", "It did not pass the gate", "It could not be judged: too few rows"}
    adapter.stale_since = now()
    assert "**Stale since" in card.render(card.Facts(**{**facts.__dict__, "adapter": adapter}))


def test_the_base_models_licence_is_read_from_its_folder(tmp_path: Path) -> None:
    assert card.license_of(tmp_path) is None
    (tmp_path / "LICENSE").write_text("\n  Apache License\n Version 2.0\n")
    assert card.license_of(tmp_path) == "Apache License"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nlicense: gpl\n")
    assert card.license_of(tmp_path) == "mit"


def test_a_card_that_cannot_be_written_stops_nothing(
    db: Database, settings: DistillSettings, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = trained(db, settings)
    folder = settings.home_path / adapter.path
    folder.rename(folder.with_name("away"))
    with db.read() as session:
        card.publish(session, adapter, settings)
    assert "cannot be written" in caplog.text


def test_the_base_is_found_by_the_adapters_own_config(db: Database, settings: DistillSettings, tmp_path: Path) -> None:
    adapter = trained(db, settings)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    config = settings.home_path / adapter.path / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    with db.read() as session:
        assert card.collect(session, adapter, settings).license == "apache-2.0"
