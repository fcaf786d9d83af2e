"""The HTTP API: who may, what errors look like, and that the endpoints do what the functions do."""

import gzip
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from admin import auth
from admin.app import build
from store import routes
from store.columns import now
from store.session import Database
from store.settings import StoreSettings
from store.tables import Capture, Review, Task
from tests.admin import rows

PATHS = [
    "/api/tasks", "/api/captures", "/api/pairs", "/api/runs", "/api/evaluations", "/api/adapters", "/api/datasets", "/api/verdicts",
    "/api/rollouts", "/api/routes", "/api/engines", "/api/audit",
]  # fmt: skip


def error(response: Any) -> dict[str, str]:
    """An error's body, which is always {"error": {message, type, code}}."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code"}
    return dict(body["error"])


@pytest.fixture
def task(sqlite: Database) -> Task:
    with sqlite.begin() as session:
        task = rows.numbers(session, 0, 40)
        rows.engine(session, rows.trained(session, task).id)
        return task


@pytest.mark.parametrize("path", [*PATHS, "/api/states", "/api/tasks/x/export"])
def test_nothing_is_told_without_a_token(client: TestClient, path: str) -> None:
    response = client.get(path, headers={"authorization": ""})
    assert response.status_code == 401
    assert error(response)["code"] == "no_token"
    assert "stillroom token new" in error(response)["message"]
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer stillroom-admin-wrong", "Basic eDp5", "Bearer", "nonsense"])
def test_a_wrong_token_opens_nothing(client: TestClient, header: str) -> None:
    assert client.get("/api/tasks", headers={"authorization": header}).status_code == 401
    assert client.post("/api/import", headers={"authorization": header}, content=b"{}").status_code == 401


def test_every_endpoint_of_the_api_wants_a_token(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    operations = [(path, verb, spec) for path, verbs in paths.items() for verb, spec in verbs.items()]
    assert len(operations) > 40
    for path, verb, spec in operations:
        assert path.startswith("/api/")
        assert spec["summary"]
        assert spec["tags"]
        assert client.request(verb, path, headers={"authorization": ""}).status_code == 401


def test_the_documentation_is_there(client: TestClient) -> None:
    assert client.get("/docs", headers={"authorization": ""}).status_code == 200
    described = {tag["name"] for tag in client.get("/openapi.json").json()["tags"]}
    used = {
        tag for verbs in client.get("/openapi.json").json()["paths"].values() for spec in verbs.values() for tag in spec["tags"]
    }
    assert used <= described


@pytest.mark.parametrize("path", PATHS)
def test_everything_can_be_listed_page_by_page(client: TestClient, task: Task, path: str) -> None:
    first = client.get(path, params={"limit": 1}).json()
    assert (first["object"], len(first["data"])) == ("list", int(path != "/api/routes"))
    for row in first["data"]:
        key = str(row.get("id", row.get("task_id")))
        second = client.get(path, params={"limit": 200, "after": key})
        assert second.status_code == 200
        assert row not in second.json()["data"]
        assert bool(second.json()["data"]) == first["has_more"]
        assert client.get(f"{path}/{key}").json().items() >= row.items()


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_there_is_told(client: TestClient, path: str) -> None:
    for name in ("nothing", "9" * 25, "²"):
        for response in (client.get(f"{path}/{name}"), client.get(path, params={"after": name})):
            assert response.status_code == 404
            assert error(response)["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/captures?limit=0", "bad_request"),
        ("/api/captures?limit=201", "bad_request"),
        ("/api/captures?status=nonsense", "bad_request"),
        ("/api/captures?from=yesterday", "bad_request"),
        ("/api/captures?review=maybe", "bad_request"),
    ],
)
def test_what_cannot_be_asked_is_told_with_the_reason(client: TestClient, path: str, code: str) -> None:
    response = client.get(path)
    assert response.status_code == 422
    assert error(response)["code"] == code
    assert "query." in error(response)["message"]


def test_unknown_paths_and_verbs_have_the_same_shape(client: TestClient) -> None:
    assert client.get("/api/nothing").status_code == 404
    assert error(client.get("/api/nothing"))["code"] == "unknown_path"
    assert client.delete("/api/tasks").status_code == 405
    assert error(client.delete("/api/tasks"))["code"] == "http_405"


def test_a_defect_has_the_same_shape_and_tells_no_secret(sqlite: Database, token: str, tmp_path: Path) -> None:
    api = build(sqlite, StoreSettings(home=tmp_path))

    @api.get("/broken")
    def broken() -> None:
        raise RuntimeError("sk-secret")

    client = TestClient(api, raise_server_exceptions=False)
    response = client.get("/broken")
    assert response.status_code == 500
    assert error(response)["code"] == "internal"
    assert "sk-secret" not in response.text


def test_a_database_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    api = build(Database("postgresql+psycopg://user:sk-secret@127.0.0.1:1/x"), StoreSettings(home=tmp_path))
    response = TestClient(api, raise_server_exceptions=False).get("/api/tasks", headers={"authorization": "Bearer x"})
    assert response.status_code == 503
    assert error(response)["code"] == "no_database"
    assert "sk-secret" not in response.text


def test_what_a_database_cannot_hold_is_refused(db: Database, tmp_path: Path) -> None:
    with db.begin() as session:
        header = {"authorization": f"Bearer {auth.make(session, 'tests', by='tests')}"}
        capture = rows.capture(session, "1?")
    client = TestClient(build(db, StoreSettings(home=tmp_path)), raise_server_exceptions=False, headers=header)
    assert client.get("/api/captures/cap_%00").status_code in {404, 422}
    assert client.get("/api/captures?q=%00").status_code in {200, 422}
    assert client.post(f"/api/captures/{capture.id}/approve", json={"note": "\0"}).status_code in {200, 422}


def test_captures_are_filtered_and_searched(client: TestClient, task: Task) -> None:
    found = client.get("/api/captures", params={"task": task.name, "q": "17", "served_by": "teacher", "status": "complete"}).json()
    assert [row["prompt"] for row in found["data"]] == ["17?"]
    naive = (now() - timedelta(minutes=5)).replace(tzinfo=None).isoformat()  # UTC where no zone is given
    for path, number in (("/api/captures", 40), ("/api/pairs", 10)):
        only = {"split": "holdout"} if path == "/api/pairs" else {}
        assert len(client.get(path, params={**only, "limit": 200, "from": naive, "to": "2100-01-01"}).json()["data"]) == number
        assert client.get(path, params={**only, "from": "2099-01-01T00:00:00Z"}).json()["data"] == []
        assert client.get(path, params={**only, "to": naive}).json()["data"] == []
    pages = [client.get("/api/pairs", params={"split": "holdout", "limit": limit}).json() for limit in (9, 10)]
    assert [page["has_more"] for page in pages] == [True, False]


def test_an_unknown_task_names_those_there_are(client: TestClient, task: Task) -> None:
    for response in (
        client.get("/api/captures", params={"task": "nothing"}),
        client.get("/api/tasks/nothing"),
        client.post("/api/tasks/nothing/train"),
        client.get("/api/tasks/nothing/export"),
    ):
        assert response.status_code == 404
        assert task.name in error(response)["message"]


@pytest.mark.parametrize("noun", ["captures", "pairs"])
def test_reviews_are_given_by_capture_and_by_pair(client: TestClient, sqlite: Database, task: Task, noun: str) -> None:
    target = client.get(f"/api/{noun}", params={"q": "17"}).json()["data"][0]["id"]
    assert client.post(f"/api/{noun}/{target}/approve").json()["kind"] == "approve"
    assert client.post(f"/api/{noun}/{target}/reject", json={"note": "no"}).json()["note"] == "no"
    assert client.post(f"/api/{noun}/{target}/correct", json={"answer": "odd!"}).json()["correction"]["content"] == "odd!"
    assert client.post(f"/api/{noun}/{target}/tag", json={"tags": ["prime"]}).json()["tags"] == ["prime"]
    one = client.get(f"/api/{noun}/{target}").json()
    assert (one["review"], one["tags"], len(one["reviews"])) == ("correct", ["prime"], 4)
    assert {review["reviewer"] for review in one["reviews"]} == {"api: tests"}


def test_a_bad_correction_is_refused_and_nothing_is_written(client: TestClient, sqlite: Database, task: Task) -> None:
    target = client.get("/api/captures").json()["data"][0]["id"]
    response = client.post(f"/api/captures/{target}/correct", json={"answer": {"role": "user", "content": "x"}})
    assert (response.status_code, error(response)["code"]) == (422, "bad_correction")
    with sqlite.read() as session:
        assert session.exec(select(Review)).all() == []


def test_what_an_answer_says_is_committed_before_it_is_sent(client: TestClient, sqlite: Database, task: Task) -> None:
    for n in range(20):
        client.post(f"/api/tasks/{task.id}/rename", json={"name": f"name {n}"})
        with sqlite.read() as session:
            assert session.get_one(Task, task.id).name == f"name {n}"


def test_a_task_is_steered(client: TestClient, task: Task) -> None:
    path = f"/api/tasks/{task.id}"
    assert client.post(f"{path}/pause").json()["status"] == "paused"
    assert client.post(f"{path}/resume").json()["status"] == "active"
    assert client.patch(f"{path}/policy", json={"holdout": 0.5}).json()["policy"]["holdout"] == 0.5
    assert client.patch(f"{path}/policy", json={"holdout": None}).json()["decided"] == {}
    refused = client.patch(f"{path}/policy", json={"holdoutt": 0.5})
    assert (refused.status_code, error(refused)["code"]) == (422, "bad_policy")
    assert client.post(f"{path}/ignore").json()["status"] == "ignored"


def test_a_student_is_promoted_and_taken_back(client: TestClient, sqlite: Database, task: Task) -> None:
    adapter = client.get("/api/adapters").json()["data"][0]["id"]
    assert client.post(f"/api/adapters/{adapter}/promote", json={"why": "good", "holdback": 0.1}).json()["live"] is True
    with sqlite.read() as session:
        assert routes.read(session).targets[task.id] == routes.Target(adapter, 0.1)
    assert client.get("/api/routes").json()["data"][0]["adapter_id"] == adapter
    assert client.post(f"/api/tasks/{task.name}/rollback").json()["incumbent"] is None
    assert client.post(f"/api/tasks/{task.name}/promote").json()["adapter_id"] == adapter
    actors = {event["actor"] for event in client.get("/api/audit").json()["data"] if event["action"] in {"promote", "rollback"}}
    assert actors == {"api: tests"}


def test_a_policy_that_cannot_be_used_breaks_no_listing(client: TestClient, sqlite: Database, task: Task) -> None:
    with sqlite.begin() as session:
        session.get_one(Task, task.id).policy = {"growth": None}
    assert "its policy cannot be used" in client.get("/api/tasks").json()["data"][0]["next"]
    assert client.get(f"/api/tasks/{task.id}").json()["policy"] is None
    assert error(client.post(f"/api/tasks/{task.id}/train"))["code"] == "bad_policy"
    assert client.patch(f"/api/tasks/{task.id}/policy", json={"growth": None}).json()["policy"]["growth"] == 0.25


def test_a_training_is_asked_for(client: TestClient, task: Task) -> None:
    response = client.post(f"/api/tasks/{task.name}/train")
    assert response.status_code == 202
    assert response.json()["train_asked_at"] is not None


def test_a_run_and_an_evaluation_show_how_it_went(client: TestClient, task: Task) -> None:
    run = client.get("/api/runs").json()["data"][0]["id"]
    assert [point["step"] for point in client.get(f"/api/runs/{run}").json()["curve"]] == [1, 2, 3]
    evaluation = client.get("/api/evaluations", params={"task": task.id}).json()["data"][0]["id"]
    items = client.get(f"/api/evaluations/{evaluation}/items").json()["data"]
    assert [item["agrees"] for item in items][:2] == [False, True]


def test_pairs_go_out_and_exchanges_come_in(client: TestClient, sqlite: Database, task: Task) -> None:
    out = client.get(f"/api/tasks/{task.name}/export")
    assert out.headers["content-type"] == "application/jsonl"
    assert len(out.content.splitlines()) == 40
    report = client.post("/api/import", params={"task": "copy", "name": "x.jsonl"}, content=out.content + b"broken\n").json()
    assert (report["imported"], report["failed"], report["errors"][0]["line"]) == (40, 1, 41)
    again = client.post("/api/import", params={"task": "copy"}, content=gzip.compress(out.content)).json()
    assert (again["imported"], again["duplicates"]) == (0, 40)
    with sqlite.read() as session:
        assert {c.meta["imported"] for c in session.exec(select(Capture)) if c.meta} == {"x.jsonl"}


def test_a_large_upload_is_imported(client: TestClient) -> None:
    line = orjson.dumps({"messages": [{"role": "user", "content": "x" * 50_000}, {"role": "assistant", "content": "y"}]})
    lines = b"\n".join(line.replace(b"x", b"%d" % n, 1) for n in range(60))
    assert len(lines) > 2_000_000
    assert client.post("/api/import", content=lines).json()["imported"] == 60


def test_tasks_are_merged_and_divided(client: TestClient, sqlite: Database, task: Task) -> None:
    with sqlite.begin() as session:
        other = rows.capture(session, "Guten Tag", request={"model": "small"}).task_id
    merged = client.post(f"/api/tasks/{task.id}/merge", json={"tasks": [other], "why": "the same"}).json()
    assert (merged["id"], merged["merged"]) == (task.id, 1)
    assert client.get(f"/api/tasks/{other}").json()["id"] == task.id
    part = client.post(f"/api/tasks/{task.id}/split", json={"containing": "Guten", "name": "german"}).json()
    assert client.get(f"/api/tasks/{task.id}").json()["parts"] == [part["name"]] == ["german"]
    assert client.post(f"/api/tasks/{task.id}/merge", json={"tasks": [task.id]}).status_code == 422


def test_the_glossary_has_every_state(client: TestClient) -> None:
    assert client.get("/api/states").json()["TaskStatus"]["paused"] == "Captured and served as before; no new training starts."
