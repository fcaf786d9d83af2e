"""Virtual keys for people: made, looked at, changed, revoked; by function, over HTTP and on the command line."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select
from typer.testing import Result

from admin import keys
from admin.keys import Changes, Wanted
from admin.problems import Conflict, Invalid, NotFound
from store import keys as stored
from store import tasks
from store.columns import now
from store.session import Database
from store.states import KeyStatus
from store.tables import AuditEvent, Task, VirtualKey

Stillroom = Callable[..., Result]


@pytest.fixture
def task(sqlite: Database) -> Task:
    with sqlite.begin() as session:
        task = tasks.ensure(session, tasks.identify({"model": "big"}))
        task.name = "odd or even"
        return task


def make(db: Database, label: str = "ci", **rules: Any) -> keys.NewKey:
    with db.begin() as session:
        return keys.make(session, Wanted(label=label, **rules), by="me")


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_key_is_shown_once(sqlite: Database) -> None:
    made = make(sqlite)
    assert made.key.startswith("sk-stillroom-")
    assert made.key.endswith(made.last4)
    with sqlite.read() as session:
        again = keys.one(session, "ci").model_dump_json() + keys.listing(session).model_dump_json()
        assert list(stored.read(session)) == [hashlib.sha256(made.key.encode()).digest()]
        assert made.key not in again + repr(session.exec(select(AuditEvent)).all()) + repr(session.exec(select(VirtualKey)).all())


def test_a_task_is_kept_by_id_and_shown_by_name(sqlite: Database, task: Task) -> None:
    made = make(sqlite, tasks=["odd or even", task.id, " triage "])
    assert made.tasks == ["odd or even", "triage"]
    with sqlite.read() as session:
        assert session.get_one(VirtualKey, made.id).tasks == [task.id, "triage"]
        [view] = stored.read(session).values()
    assert view.tasks == {task.id, tasks.identify({}, "triage").id}


def test_a_task_that_cannot_be_is_refused(sqlite: Database, task: Task) -> None:
    with pytest.raises(NotFound, match="There are: odd or even"):
        make(sqlite, tasks=["task_0123456789abcdef"])
    with pytest.raises(Invalid, match="is no task name"):
        make(sqlite, tasks=["-"])


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"label": ""}, "at least 1 character"),
        ({"label": "x" * 101}, "at most 100 characters"),
        ({"label": "a\0b"}, "must be printable"),
        ({"budget_usd": -1}, "greater than or equal to 0"),
        ({"budget_usd": float("nan")}, "finite"),
        ({"budget_period": "week"}, "'total' or 'month'"),
        ({"requests_per_minute": 0}, "greater than or equal to 1"),
        ({"requests_per_minute": 2_000_000}, "less than or equal to 1000000"),
        ({"budget": 5}, "budget: Extra inputs .* The rules are tasks, budget_usd, budget_period"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(rules: dict[str, Any], why: str) -> None:
    with pytest.raises(Invalid, match=why):
        keys.read(Wanted, {"label": "ci", **rules})


def test_a_key_that_would_be_over_already_is_refused(sqlite: Database) -> None:
    with pytest.raises(Invalid, match="is over already"):
        make(sqlite, expires_at=datetime(2020, 1, 1))
    later = (now() + timedelta(days=1)).replace(tzinfo=None)
    assert make(sqlite, expires_at=later).expires_at == later.replace(tzinfo=UTC)


def test_a_change_leaves_alone_what_it_does_not_name(sqlite: Database) -> None:
    make(sqlite, tasks=["triage"], budget_usd=5, budget_period="month", requests_per_minute=60)
    with sqlite.begin() as session:
        changed = keys.change(session, "ci", Changes(requests_per_minute=None, label="cd"), by="me")
    assert (changed.label, changed.requests_per_minute, changed.budget_usd, changed.tasks) == ("cd", None, 5, ["triage"])
    with sqlite.begin() as session:
        changed = keys.change(session, "cd", Changes(tasks=None, budget_usd=None, budget_period=None), by="me")
    assert (changed.tasks, changed.budget_usd, changed.budget_period) == ([], None, "total")
    with sqlite.begin() as session, pytest.raises(Invalid, match="has a label"):
        keys.change(session, "cd", Changes(label=None), by="me")


def test_labels_are_told_apart(sqlite: Database) -> None:
    make(sqlite)
    make(sqlite, "cd")
    with pytest.raises(Conflict, match="labelled 'ci' already"):
        make(sqlite)
    with sqlite.begin() as session:
        with pytest.raises(Conflict, match="labelled 'ci' already"):
            keys.change(session, "cd", Changes(label="ci"), by="me")
        with pytest.raises(NotFound, match="There are: cd, ci"):
            keys.revoke(session, "ic", by="me")


def test_a_revoked_key_stays_revoked_and_its_label_is_free(sqlite: Database) -> None:
    first = make(sqlite)
    with sqlite.begin() as session:
        assert keys.revoke(session, "ci", by="me").status == KeyStatus.REVOKED
        with pytest.raises(Conflict, match="revoked, and stays so"):
            keys.change(session, first.id, Changes(budget_usd=1), by="me")
    assert make(sqlite).id != first.id


def test_a_key_says_how_it_stands(sqlite: Database) -> None:
    made = make(sqlite, budget_usd=1)
    with sqlite.begin() as session:
        assert keys.one(session, "ci").status == KeyStatus.ACTIVE
        stored.charge(session, made.id, 1.0, now())
    with sqlite.begin() as session:
        found = keys.one(session, "ci")
        assert (found.status, found.spent_usd) == (KeyStatus.SPENT, 1.0)
        session.get_one(VirtualKey, made.id).expires_at = now() - timedelta(seconds=1)
        assert keys.one(session, "ci").status == KeyStatus.EXPIRED


def test_a_key_lives_over_http(client: TestClient, sqlite: Database, task: Task) -> None:
    answer = client.post("/api/keys", json={"label": "ci", "tasks": ["odd or even"], "budget_usd": 5, "budget_period": "month"})
    assert answer.status_code == 201
    made = answer.json()
    assert made["key"].startswith("sk-stillroom-")
    [line] = client.get("/api/keys").json()["data"]
    assert line == {name: value for name, value in made.items() if name != "key"}
    assert (line["tasks"], line["budget_usd"], line["spent_usd"], line["status"]) == (["odd or even"], 5, 0, "active")
    assert client.get("/api/keys/ci").json() == client.get(f"/api/keys/{made['id']}").json() == line
    assert client.patch("/api/keys/ci", json={"requests_per_minute": 60}).json()["requests_per_minute"] == 60
    assert client.patch("/api/keys/ci", json={"requests_per_minute": None}).json()["requests_per_minute"] is None
    assert client.post("/api/keys/ci/revoke").json()["status"] == "revoked"
    with sqlite.read() as session:
        assert stored.read(session) == {}
        events = session.exec(select(AuditEvent).where(AuditEvent.subject == made["id"])).all()
    assert {event.actor for event in events} == {"api: tests"}


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "code"),
    [
        ("POST", "/api/keys", {}, 422, "bad_request"),
        ("POST", "/api/keys", {"label": "cd", "budget": 5}, 422, "bad_request"),
        ("POST", "/api/keys", {"label": "ci"}, 409, "label_taken"),
        ("PATCH", "/api/keys/ci", {"budget_usd": "much"}, 422, "bad_request"),
        ("PATCH", "/api/keys/ic", {"budget_usd": 1}, 404, "unknown_key"),
        ("POST", "/api/keys/ic/revoke", None, 404, "unknown_key"),
        ("GET", "/api/keys/%00", None, 404, "unknown_key"),
        ("GET", "/api/keys?after=nothing", None, 404, "unknown_cursor"),
    ],
)
def test_what_cannot_be_done_is_told(
    client: TestClient, sqlite: Database, verb: str, path: str, body: Any, status: int, code: str
) -> None:
    make(sqlite)
    answer = client.request(verb, path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_keys_are_paged_newest_first(client: TestClient, sqlite: Database) -> None:
    made = [make(sqlite, label).id for label in ("a", "b", "c")]
    first = client.get("/api/keys?limit=2").json()
    second = client.get(f"/api/keys?limit=2&after={first['data'][-1]['id']}").json()
    assert [line["id"] for line in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_a_key_lives_on_the_command_line(stillroom: Stillroom, sqlite: Database, task: Task) -> None:
    assert "`stillroom keys add LABEL`" in stillroom("keys", "list").stdout
    made = stillroom(
        "keys", "add", "ci", "tasks=odd or even, triage", "budget_usd=5", "budget_period=month", "expires_at=2100-01-01"
    )
    secret = made.stdout.strip()
    assert secret.startswith("sk-stillroom-")
    listed = stillroom("keys", "list")
    assert secret not in listed.output
    for shown in ("ci", "active", f"…{secret[-4:]}", "odd or even, triage", "$5.00 a month", "$0.00"):
        assert shown in listed.stdout
    assert parsed(stillroom("keys", "edit", "ci", "tasks=", "budget_usd=", "requests_per_minute=60", "--json"))["tasks"] == []
    [line] = parsed(stillroom("keys", "list", "--json"))["data"]
    assert (line["budget_usd"], line["requests_per_minute"]) == (None, 60)
    assert "requests_per_minute  60" in stillroom("keys", "edit", "ci", "label=cd").stdout
    assert stillroom("keys", "revoke", "cd").stdout == "cd is revoked.\n"
    assert "revoked" in stillroom("keys", "list").stdout
    assert parsed(stillroom("keys", "add", "cd", "--json"))["key"].startswith("sk-stillroom-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "ci", "budget"], "'budget' is not rule=value"),
        (["add", "ci", "budget=5"], "The rules are tasks, budget_usd"),
        (["add", "ci", "budget_usd=much"], "budget_usd: Input should be a valid number"),
        (["add", "ci", "expires_at=soon"], "is no time"),
        (["add", "ci", "expires_at=2020-01-01"], "is over already"),
        (["edit", "ci", "budget_usd=5"], "There is no key 'ci'. There are none: `stillroom keys add LABEL`"),
        (["revoke", "ci"], "There is no key 'ci'"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(stillroom: Stillroom, arguments: list[str], message: str) -> None:
    result = stillroom("keys", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr


def test_on_a_narrow_terminal_a_key_is_a_line(stillroom: Stillroom, sqlite: Database) -> None:
    make(sqlite, "somebody's notebook", tasks=["one", "two"], budget_usd=5, requests_per_minute=60)
    shown = stillroom("keys", "list", env={"COLUMNS": "80"}).stdout.splitlines()
    assert len(shown) == 2
    assert max(map(len, shown)) <= 120
    assert "somebody's notebook" in shown[1]
