"""A database and a way to put traffic into it, for the tests of distill."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from store import ids, migrate, tasks
from store.session import Database
from store.states import CaptureStatus, Server
from store.tables import Capture
from tests import models

SYSTEM = {"role": "system", "content": "Say whether the number is odd or even."}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder."""
    return models.tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/stillroom.db")
    migrate.upgrade(database)
    yield database
    database.close()


def exchange(prompt: str, answer: str | None, **changes: Any) -> Capture:
    """A capture as the proxy stores it; `changes` replace its columns, `request` and `body` parts of its bodies."""
    request = {"model": "big", "messages": [SYSTEM, {"role": "user", "content": prompt}], **changes.pop("request", {})}
    message = {"role": "assistant", "content": answer, **changes.pop("message", {})}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": changes.pop("finish_reason", "stop")}]}
    columns: dict[str, Any] = {
        "id": ids.new("cap"),
        "task_id": tasks.identify(request).id,
        "endpoint": "/v1/chat/completions",
        "status": CaptureStatus.COMPLETE,
        "served_by": Server.TEACHER,
        "http_status": 200,
        "request": orjson.dumps(request),
        "response": orjson.dumps(body),
    }
    return Capture(**{**columns, **changes})


@pytest.fixture
def put(db: Database) -> Callable[..., str]:
    """Store captures; returns their task's id."""

    def put(*captures: Capture) -> str:
        with db.begin() as session:
            for capture in captures:
                tasks.ensure(session, tasks.identify(orjson.loads(capture.request)))
                session.add(capture)
            return captures[0].task_id

    return put
