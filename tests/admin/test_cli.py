"""The `stillroom` command over the same functions: for people, as JSON, and its errors."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlmodel import select
from typer.testing import Result

from admin import schema
from admin.commands import screen
from serving.command import free_port
from store import migrate, routes
from store.session import Database
from store.tables import Capture, Review, Task
from tests.admin import rows

Stillroom = Callable[..., Result]
LISTINGS = ["tasks", "captures", "pairs", "runs", "evaluations", "adapters", "routes", "verdicts", "audit"]


@pytest.fixture
def task(sqlite: Database) -> Task:
    with sqlite.begin() as session:
        task = rows.numbers(session, 0, 40)
        task.name = "odd or even"
        adapter = rows.trained(session, task)
        rows.engine(session, adapter.id)
        rows.live(session, adapter)
        return task


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("listing", LISTINGS)
def test_every_listing_is_for_people_and_as_json(stillroom: Stillroom, task: Task, listing: str) -> None:
    page = parsed(stillroom(listing, "--json", "--limit", "1"))
    assert (page["object"], len(page["data"])) == ("list", 1)
    shown = stillroom(listing)
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) >= 2


@pytest.mark.parametrize("listing", LISTINGS)
def test_an_empty_listing_says_what_to_do(stillroom: Stillroom, listing: str) -> None:
    assert parsed(stillroom(listing, "--json"))["data"] == []
    assert stillroom(listing).stdout.strip().endswith((".", "it."))


def test_a_listing_says_where_to_go_on(stillroom: Stillroom, task: Task) -> None:
    first = stillroom("captures", "--limit", "2")
    cursor = parsed(stillroom("captures", "--limit", "2", "--json"))["data"][-1]["id"]
    assert f"--after {cursor}" in first.stderr
    assert cursor not in stillroom("captures", "--after", cursor).stdout


@pytest.mark.parametrize("listing", LISTINGS)
def test_on_a_narrow_terminal_ids_stay_whole_and_a_row_is_a_line(stillroom: Stillroom, task: Task, listing: str) -> None:
    page = parsed(stillroom(listing, "--json"))["data"]
    shown = stillroom(listing, env={"COLUMNS": "80"}).stdout.splitlines()
    assert len(shown) == len(page) + 1
    assert max(map(len, shown)) <= 80
    key = {"tasks": "name", "routes": "adapter_id"}.get(listing, "id")
    for row, text in zip(page, shown[1:], strict=True):
        assert str(row[key]) in text


def test_where_ids_are_wider_than_the_terminal_they_are_whole_all_the_same() -> None:
    assert screen.fit({"id": 40, "adapter": 60, "task": 30, "time": 16}, 80) == {"id": 40, "adapter": 60}
    assert screen.fit({"id": 30, "task": 30, "prompt": 60, "time": 16}, 80) == {"id": 30, "task": 14, "prompt": 14, "time": 16}
    assert screen.fit({"id": 30, "task": 6, "prompt": 60}, 80) == {"id": 30, "task": 6, "prompt": 40}


def test_captures_are_filtered(stillroom: Stillroom, task: Task) -> None:
    found = stillroom("captures", "--task", "odd or even", "-q", "17", "--served-by", "teacher", "--from", "2020-01-01", "--json")
    assert [row["prompt"] for row in parsed(found)["data"]] == ["17?"]
    assert stillroom("pairs", "--split", "holdout", "-q", "16", "--review", "none").stdout.count("16?") == 1
    assert "is no time" in stillroom("captures", "--from", "yesterday").stderr


def test_one_capture_shows_both_answers(stillroom: Stillroom, task: Task) -> None:
    [capture] = parsed(stillroom("captures", "-q", "36?", "--json"))["data"]
    shown = stillroom("capture", capture["id"]).stdout
    assert "[user] 36?" in shown
    assert "student (evaluation, does not agree)  odd" in shown
    assert "The whole answer reached the client." in shown
    assert parsed(stillroom("capture", capture["id"], "--json"))["student"]["message"]["content"] == "odd"


def test_a_pair_a_run_and_an_evaluation_are_shown(stillroom: Stillroom, task: Task) -> None:
    for listing, one in (("pairs", "pair"), ("runs", "run"), ("evaluations", "evaluation")):
        row = parsed(stillroom(listing, "--json"))["data"][0]
        assert row["id"] in stillroom(one, row["id"]).stdout
        assert stillroom(one, row["id"], "--json").exit_code == 0
    whole = parsed(stillroom("evaluation", row["id"], "--json"))
    assert (whole["id"], whole["outcome"], len(whole["items"]["data"])) == (row["id"], "passed", 10)
    run = parsed(stillroom("runs", "--json"))["data"][0]["id"]
    assert "2.0000 █▂▁ 0.6667" in stillroom("run", run).stdout


def test_a_task_is_shown_by_name_and_steered_by_verb(stillroom: Stillroom, task: Task) -> None:
    assert "trains now" not in stillroom("task", "odd or even").stdout
    assert parsed(stillroom("task", "odd or even", "--json"))["id"] == task.id
    assert parsed(stillroom("task", "set", task.id, "holdout=0.4", "auto_promote=false", "--json"))["decided"] == {
        "holdout": 0.4, "auto_promote": False,
    }  # fmt: skip
    assert parsed(stillroom("task", "set", task.id, "holdout=", "--json"))["decided"] == {"auto_promote": False}
    assert "auto_promote = no  (decided)" in stillroom("task", task.id).stdout
    assert parsed(stillroom("task", "pause", task.id, "--json"))["status"] == "paused"
    assert parsed(stillroom("task", "resume", task.id, "--json"))["status"] == "active"
    assert parsed(stillroom("task", "rename", task.id, "numbers", "--json"))["name"] == "numbers"
    assert parsed(stillroom("task", "ignore", "numbers", "--json"))["incumbent"] is None


def test_reviews_are_given(stillroom: Stillroom, sqlite: Database, task: Task) -> None:
    target = parsed(stillroom("captures", "--json"))["data"][0]["id"]
    assert stillroom("approve", target, "--note", "fine").exit_code == 0
    assert stillroom("reject", target).exit_code == 0
    assert stillroom("correct", target, "neither").exit_code == 0
    assert stillroom("correct", target, "--file", "-", input="from stdin").exit_code == 0
    assert stillroom("correct", target, "--message", '{"content": "whole"}').exit_code == 0
    assert parsed(stillroom("tag", target, "one", "two", "--json"))["tags"] == ["one", "two"]
    with sqlite.read() as session:
        reviews = session.exec(select(Review).order_by("created_at")).all()
    assert [(review.correction or {}).get("content") for review in reviews[2:5]] == ["neither", "from stdin", "whole"]
    assert {review.reviewer.split(":")[0] for review in reviews} == {"cli"}


def test_people_decide(stillroom: Stillroom, sqlite: Database, task: Task) -> None:
    assert stillroom("rollback", "odd or even", "--why", "it erred").exit_code == 0
    with sqlite.read() as session:
        assert routes.read(session).targets == {}
    assert "answers" in stillroom("promote", "odd or even", "--holdback", "0.2").stdout
    with sqlite.read() as session:
        assert routes.read(session).targets[task.id].holdback == 0.2
    assert stillroom("train", "odd or even").exit_code == 0
    with sqlite.read() as session:
        assert session.get_one(Task, task.id).train_asked_at is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task", "nothing"], "There are: odd or even"),
        (["train", "nothing"], "There are: odd or even"),
        (["captures", "--task", "nothing"], "There are: odd or even"),
        (["capture", "cap_nothing"], "`stillroom captures`"),
        (["run", "run_nothing"], "`stillroom runs`"),
        (["promote", "nothing"], "`stillroom adapters`"),
        (["task", "set", "odd or even", "holdoutt=1"], "'holdoutt' is no key of a policy"),
        (["task", "set", "odd or even", "holdout"], "is not key=value"),
        (["correct", "cap_nothing"], "Give the answer"),
        (["token", "revoke", "nothing"], "no token labelled"),
        (["correct", "cap_nothing", "--file", "/nothing/there"], "No such file or directory: '/nothing/there'"),
        (["correct", "cap_nothing", "--file", sys.executable], "is not UTF-8"),
        (["export", "odd or even", "-o", "/nothing/there"], "No such file or directory"),
        (["up", "--without", "cellar"], "There is no room cellar: the rooms are proxy, distill, serving, admin"),
    ],
)
def test_an_error_is_one_line_on_stderr_that_says_what_to_do(
    stillroom: Stillroom, task: Task, arguments: list[str], message: str
) -> None:
    result = stillroom(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_pairs_are_exported_and_imported(stillroom: Stillroom, sqlite: Database, task: Task, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert stillroom("export", "odd or even", "-o", str(file)).exit_code == 0
    assert stillroom("export", "odd or even", "--split", "holdout").stdout.count("\n") == 10
    assert len(file.read_text().splitlines()) == 40
    file.write_text(file.read_text() + "broken\n")
    result = stillroom("import", str(file), "--task", "copy")
    assert "40 imported, 0 there already, 1 left out." in result.stdout
    assert f"{file}:41: no JSON" in result.stderr
    assert parsed(stillroom("import", str(file), "--task", "copy", "--json"))["duplicates"] == 40
    with sqlite.read() as session:
        assert len([c for c in session.exec(select(Capture)) if c.meta]) == 40


def test_an_import_of_which_nothing_can_be_used_fails(stillroom: Stillroom, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("broken\n")
    assert stillroom("import", str(tmp_path / "bad.jsonl")).exit_code == 1
    assert stillroom("import", str(tmp_path / "nothing.jsonl")).exit_code == 2


def test_tokens_are_made_listed_and_revoked(stillroom: Stillroom) -> None:
    made = stillroom("token", "new", "--label", "ci").stdout.strip()
    assert made.startswith("stillroom-admin-")
    listed = stillroom("token", "list", "--json").stdout
    assert [token["label"] for token in json.loads(listed)] == ["ci"]
    assert made not in listed
    assert parsed(stillroom("token", "revoke", "ci", "--json"))["label"] == "ci"
    assert parsed(stillroom("token", "new", "--label", "cd", "--json"))["token"].startswith("stillroom-admin-")
    assert stillroom("token", "revoke", "cd").stdout == "cd is revoked.\n"
    assert "No tokens" in stillroom("token", "list").stdout


def test_status_shows_tasks_and_what_runs(stillroom: Stillroom, task: Task) -> None:
    status = parsed(stillroom("status", "--json"))
    assert (status["up"], status["rooms"], status["spool"]) == (None, [], {"files": 0, "bytes": 0, "rejected": 0})
    assert status["tasks"][0]["incumbent"] == f"{task.id}@v1"
    assert status["engines"][0]["status"] == "ready"
    shown = stillroom("status").stdout
    assert "`stillroom up` starts it" in shown
    assert "odd or even" in shown


@pytest.mark.parametrize(
    ("command", "variable", "value", "says"),
    [
        ("tasks", "ADMIN_PORT", "many", "Input should be a valid integer"),
        ("doctor", "MAX_LORAS", "many", "Input should be a valid integer"),
        ("up", "MAX_LORAS", "many", "Input should be a valid integer"),
        ("serving", "MAX_LORA_RANK", "9", "Value error, vLLM takes 1, 8"),
    ],
)
def test_a_bad_setting_names_its_variable(stillroom: Stillroom, command: str, variable: str, value: str, says: str) -> None:
    result = stillroom(command, env={f"STILLROOM_{variable}": value})
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: The environment cannot be used: STILLROOM_{variable}: {says}")


@pytest.mark.parametrize(
    ("command", "settings", "says"),
    [
        (["-m", "proxy"], {"SPOOL_MAX_BYTES": "many"}, "Error: The environment cannot be used: STILLROOM_SPOOL_MAX_BYTES: Input"),
        (["-m", "distill"], {"TICK_SECONDS": "-1"}, "Error: The environment cannot be used: STILLROOM_TICK_SECONDS: Input"),
        (["-m", "serving"], {"MAX_LORAS": "many"}, "Error: The environment cannot be used: STILLROOM_MAX_LORAS: Input"),
        (["-m", "admin"], {"ADMIN_PORT": "many"}, "Error: The environment cannot be used: STILLROOM_ADMIN_PORT: Input"),
        (["-m", "admin"], {"DATABASE_URL": "nonsense"}, "Error: STILLROOM_DATABASE_URL is no database URL"),
        (["-m", "admin.cli", "up"], {"DATABASE_URL": "nonsense"}, "Error: STILLROOM_DATABASE_URL is no database URL"),
        (
            ["-c", "import sys; sys.modules['psycopg'] = None; from admin.cli import app; app(['up'])"],
            {"DATABASE_URL": "postgresql://u@127.0.0.1:1/x"},
            "Error: The database's driver (psycopg) is not installed here",
        ),
    ],
)
def test_a_room_that_cannot_be_wired_says_why_in_a_line(
    tmp_path: Path, command: list[str], settings: dict[str, str], says: str
) -> None:
    ports = {"STILLROOM_PROXY_PORT": str(free_port()), "STILLROOM_ADMIN_PORT": str(free_port())}
    given = {f"STILLROOM_{name}": value for name, value in settings.items()}
    environment = {**os.environ, "STILLROOM_HOME": str(tmp_path), **ports, **given}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(says)


def test_a_newer_stillrooms_database_is_told_by_the_admin_room_in_a_line(sqlite: Database, tmp_path: Path) -> None:
    with sqlite.begin() as session:
        session.connection().execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    environment = {**os.environ, "STILLROOM_HOME": str(tmp_path), "STILLROOM_ADMIN_PORT": str(free_port())}
    done = subprocess.run([sys.executable, "-m", "admin"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: The database's schema (9999) is of a newer stillroom")
    assert "Traceback" not in done.stderr


def test_a_database_that_is_away_is_named_without_its_password(stillroom: Stillroom) -> None:
    result = stillroom("tasks", env={"STILLROOM_DATABASE_URL": "postgresql://user:sk-secret@127.0.0.1:1/x"})
    assert result.exit_code == 1
    assert "user:***@127.0.0.1:1/x does not answer" in result.stderr
    assert "sk-secret" not in result.stderr


def test_a_database_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path, stillroom: Stillroom) -> None:
    db = Database(f"sqlite:///{tmp_path}/new/stillroom.db")
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parents[1] / "migrations"))
    with db.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    assert schema.look(db).current == "0001"
    assert parsed(stillroom("tasks", "--json", env={"STILLROOM_HOME": str(tmp_path / "new")}))["data"] == []
    found = schema.look(db)
    assert found.current == found.head
    db.close()


def test_a_simulated_teacher_is_served(tmp_path: Path) -> None:
    port = free_port()
    line = [sys.executable, "-m", "admin.cli", "teacher", "simulate", "--port", str(port), "--latency-ms", "0", "--key", "sk-x"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as teacher:
        for _ in range(200):
            try:
                response = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"authorization": "Bearer sk-x"})
                break
            except httpx.TransportError:
                time.sleep(0.1)
        teacher.terminate()
    assert response.json()["data"][0]["id"] == "gpt-sim"
    assert response.headers["x-stillroom-simulation"] == "true"


def test_a_recording_without_an_exchange_is_told(stillroom: Stillroom, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("broken\n")
    result = stillroom("teacher", "replay", str(tmp_path / "empty.jsonl"))
    assert result.exit_code == 1
    assert "no recorded exchange" in result.stderr


def test_a_room_that_cannot_run_here_says_what_to_install(stillroom: Stillroom, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "vllm"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "distill cannot run here. torch not installed; in the checkout: make setup" in stillroom("distill").stderr
    assert "serving cannot run here. vLLM not installed; in the checkout: make setup" in stillroom("serving").stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from admin.cli import app\n"
        "try: app(['--help'], prog_name='stillroom')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sqlalchemy', 'fastapi', 'rich', 'pydantic', 'httpx', 'scipy'}\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & heavy))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Everything, supervised" in shown
    assert shown.splitlines()[-1] == "[]"


def test_the_api_and_the_command_line_start_without_torch() -> None:
    code = (
        "import sys; import admin.app, admin.up, admin.status, admin.doctor\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'vllm', 'peft', 'scipy'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_tasks_are_merged_divided_and_ignored(stillroom: Stillroom, sqlite: Database, task: Task) -> None:
    with sqlite.begin() as session:
        other = rows.capture(session, "Guten Tag", request={"model": "small"}).task_id
    merged = parsed(stillroom("tasks", "merge", "odd or even", other, "--why", "the same", "--json"))
    assert (merged["name"], merged["merged"]) == ("odd or even", 1)
    assert "1 keys that were merged into it" in stillroom("task", other).stdout
    part = parsed(stillroom("tasks", "split", task.id, "--containing", "Guten", "--name", "german", "--json"))
    assert part["name"] == "german"
    assert "parts" in stillroom("task", task.id).stdout
    assert parsed(stillroom("tasks", "ignore", "german", "--json"))["status"] == "ignored"
    refused = stillroom("tasks", "merge", "odd or even", "odd or even")
    assert (refused.exit_code, "cannot be merged into itself" in refused.output) == (1, True)
    assert {each["name"] for each in parsed(stillroom("tasks", "--json"))["data"]} == {"odd or even", "german"}
