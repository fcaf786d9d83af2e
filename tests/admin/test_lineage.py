"""Lineage and cards by the API and by the command line."""

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from fastapi.testclient import TestClient
from typer.testing import Result

from admin import reviews
from distill.settings import DistillSettings
from store.session import Database
from store.tables import Adapter, Task
from tests import chain

RULES = "You sort letters into departments. Answer with one word, the department, in lower case. Never explain your answer."


@pytest.fixture
def adapter(sqlite: Database, tmp_path: Path) -> Adapter:
    settings = DistillSettings(home=tmp_path)
    task_id = chain.write(sqlite, [chain.exchange(number, RULES) for number in range(60)])
    chain.pair(sqlite, task_id)
    return chain.train(sqlite, chain.freeze(sqlite, task_id, settings), settings)


def test_a_whole_lineage_is_said_to_be_and_a_broken_one_is_an_error(
    client: TestClient, stillroom: Callable[..., Result], adapter: Adapter, tmp_path: Path
) -> None:
    found = client.get(f"/api/adapters/{adapter.id}/lineage").json()
    assert (found["whole"], len(found["hops"])) == (True, 6)
    assert stillroom("lineage", adapter.id).exit_code == 0
    file = tmp_path / adapter.path / "adapter_config.json"
    file.write_bytes(file.read_bytes() + b" ")
    result = stillroom("lineage", adapter.id)
    assert (result.exit_code, "adapter_config.json is not what it was" in result.stdout) == (1, True)
    result = stillroom("lineage", adapter.id, "--json")
    assert (result.exit_code, orjson.loads(result.stdout)["whole"]) == (1, False)
    assert client.get("/api/adapters/x/lineage").status_code == 404
    assert stillroom("lineage", "x").exit_code == 1


def test_the_adapters_that_learned_from_a_capture(
    client: TestClient, stillroom: Callable[..., Result], sqlite: Database, adapter: Adapter
) -> None:
    pair = chain.ready(sqlite, adapter.task_id)[0]
    (line,) = client.get(f"/api/captures/{pair.capture_id}/adapters").json()
    assert (line["id"], line["stale_since"], line["stripped"]) == (adapter.id, None, False)
    assert adapter.id in stillroom("lineage", pair.id).stdout
    assert [each["id"] for each in orjson.loads(stillroom("lineage", pair.capture_id, "--json").stdout)] == [adapter.id]
    assert client.get("/api/captures/cap_x/adapters").status_code == 404


def test_the_card_as_things_are_now(client: TestClient, stillroom: Callable[..., Result], adapter: Adapter) -> None:
    answer = client.get(f"/api/adapters/{adapter.id}/card")
    assert answer.headers["content-type"].startswith("text/markdown")
    assert answer.text.startswith("---\n")
    assert stillroom("card", adapter.id).stdout == answer.text
    assert client.get("/api/adapters/x/card").status_code == 404


def test_what_a_person_wrote_is_redacted_as_the_pair_is(stillroom: Callable[..., Result], sqlite: Database, tmp_path: Path) -> None:
    settings = DistillSettings(home=tmp_path)
    rows = [chain.exchange(n, RULES, question=f"{chain.said(n)} I am ada{n}@home.org") for n in range(60)]
    task_id = chain.write(sqlite, rows)
    with sqlite.begin() as session:
        session.get_one(Task, task_id).policy = {"redact": ["email"]}
    chain.pair(sqlite, task_id)
    with sqlite.begin() as session:
        reviews.correct(session, rows[0].id, "ask ada0@home.org or bob@home.org", by="tests")
    adapter = chain.train(sqlite, chain.freeze(sqlite, task_id, settings), settings)
    exported = stillroom("export", task_id).stdout
    assert "ask person1@example.com or person2@example.com" in exported
    assert "home.org" not in exported
    assert stillroom("lineage", adapter.id).exit_code == 0
