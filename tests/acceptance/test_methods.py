"""Each way to train, with the real base model, to an adapter that the real vLLM loads and answers with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from distill import clusters, launch, recipe, search
from distill.rows import TrainRow
from distill.settings import DistillSettings
from serving.base import prepare
from serving.settings import ServingSettings
from serving.vllm import StudentServer
from store import children, migrate
from store.policy import Policy
from store.session import Database
from store.states import TrialStatus
from store.tables import Trial
from tests import chain
from tests.acceptance.test_real_vllm import MODELS, Serving, register
from tests.cluster import ray_cluster
from tests.distill.test_train import rows

pytestmark = pytest.mark.timeout(1800)

COMMON = 'epochs = 2\nbatch_rows = 4\npatience = 0\nwarmup = 0.0\nschedule = "constant"\nlearning_rate = {rate}\n'
METHODS = {
    "lora": (1e-3, ""),
    "qlora": (1e-3, 'method = "qlora"\n'),
    "full": (1e-4, 'method = "full"\n'),
    "dpo": (1e-3, 'objective = "dpo"\n'),
    "ray": (1e-3, ""),  # as the first, by two trainers of a cluster
}
ANSWERING = (*METHODS, "sweep")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with an adapter of each method, and what its trainer reported."""
    folder, base = tmp_path_factory.mktemp("home"), prepare("smollm2", MODELS)
    (folder / "artifacts").mkdir()
    lines = [row.__dict__ | {"rejected": {"role": "assistant", "content": "I do not know."}} for row in rows(24)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "validation.jsonl").write_text("".join(json.dumps(row.__dict__) + "\n" for row in rows(30)[24:]))
    with ray_cluster() as address:
        for method, (rate, choices) in METHODS.items():
            (folder / "recipe.toml").write_text(COMMON.format(rate=rate) + choices)
            out = folder / method
            arguments: list[str | Path] = ["--base", base, "--data", folder / "train.jsonl", "--out", out, "--json"]
            arguments += ["--recipe", folder / "recipe.toml", "--validation", folder / "validation.jsonl"]
            settings = DistillSettings(home=folder)
            if method == "ray":
                settings = DistillSettings(home=folder, ray_address=address, trainers=2)
            done = subprocess.run(launch.command(settings, arguments), capture_output=True, text=True, timeout=900, check=False)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            (folder / f"{method}.json").write_text(done.stdout.splitlines()[-1])
            (out / "adapter").rename(folder / "artifacts" / f"{method}@v1")
    found = sweep(folder / "sweep", base)
    found.rename(folder / "artifacts" / "sweep@v1")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def sweep(home: Path, base: Path) -> Path:
    """The adapter that a search of two trials chose, from captures."""
    settings, policy = DistillSettings(home=home), Policy(search="on", search_hours=9, curve="never")
    home.mkdir()
    db = Database(settings.url)
    migrate.upgrade(db)
    captures = []
    for number, row in enumerate(rows(60)):
        rules, question = (str(message["content"]) for message in row.messages)
        said = f"{chain.said(number)}. {question}"  # no near-duplicates
        captures.append(chain.exchange(number, rules, question=said, answer=row.completion["content"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "VALIDATION_FROM", 0)
        patch.setattr(search, "MOST_TRIALS", 2)
        task_id = chain.write(db, captures)
        chain.pair(db, task_id)
        dataset = chain.freeze(db, task_id, settings)
        (home / "recipe.toml").write_text(COMMON.format(rate=1e-3))
        with db.begin() as session:
            usual = recipe.load(home / "recipe.toml")
            opened = search.open_search(session, dataset, "smollm2", usual, policy, settings, again=False)
        run = search.run(db, opened.id, base, policy, settings, lambda: None)
    with db.read() as session:
        usual_one, other = session.exec(select(Trial).order_by(col(Trial.number)))
    assert usual_one.status == TrialStatus.COMPLETE
    assert run.id in {usual_one.rungs[-1]["run_id"], other.rungs[-1]["run_id"]}
    db.close()
    return settings.run_folder(run.id) / "adapter"


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[StudentServer]:
    """vLLM with all of them, started as stillroom does."""
    db = Database(ServingSettings(home=home, database_url=None).url)
    migrate.upgrade(db)
    for method in ANSWERING:
        register(db, home, f"{method}@v1")
    environment = {"STILLROOM_HOME": str(home), "STILLROOM_MODELS_DIR": str(MODELS), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = children.spawn([sys.executable, "-m", "serving"], environment=environment)
    try:
        running = Serving(process, db, MODELS / "smollm2", home)
        running.until(lambda row: set(row.loaded) == {f"{method}@v1" for method in ANSWERING}, 400)
        with running.server() as found:
            yield found
    finally:
        children.stop(process, grace=20)
        db.close()


def report(home: Path, method: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((home / f"{method}.json").read_text())["result"]
    return result


@pytest.mark.parametrize("method", METHODS)
def test_every_method_teaches(home: Path, method: str) -> None:
    result = report(home, method)
    assert result["rows"] == 24
    assert result["validation_losses"][-1] < result["validation_losses"][0]
    if method in ("qlora", "full"):
        assert result["served_loss"] == pytest.approx(result["validation_losses"][-1], abs=0.05)
    if method == "full":
        assert 0.5 < result["kept"] <= 1


def test_a_cluster_trains_what_one_process_does(home: Path) -> None:
    alone, cluster = report(home, "lora"), report(home, "ray")
    assert cluster["validation_losses"] == pytest.approx(alone["validation_losses"], abs=0.02)  # bfloat16 where it is fast


@pytest.mark.parametrize("method", ANSWERING)
def test_vllm_answers_with_what_was_learned(server: StudentServer, method: str) -> None:
    def ask(model: str, row: TrainRow) -> str:
        body = {"model": model, "messages": row.messages, "temperature": 0, "max_tokens": 16}
        return str(server.complete(body)["choices"][0]["message"]["content"])

    unseen = rows(30)[24:]
    assert all(ask(f"{method}@v1", row).startswith('{"order":') for row in unseen)
    assert not any(ask("smollm2", row).startswith('{"order":"') for row in unseen)
