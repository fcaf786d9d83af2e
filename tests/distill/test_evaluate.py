"""The teacher asked again, at real servers: which, where, under which key, and when not at all."""

import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from distill.datasets import Row
from distill.evaluate import Question, Teacher
from distill.settings import DistillSettings
from store.chat import CHAT, ENDPOINTS

Asked = list[tuple[str, dict[str, str], dict[str, Any]]]  #: path, headers, body


@pytest.fixture
def server() -> Iterator[tuple[str, Asked]]:
    """A teacher that says which path it was asked at."""
    asked: Asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            message = {"role": "assistant", "content": self.path}
            choice = {"index": 0, "finish_reason": "stop", "message": message, "text": self.path}
            item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": self.path}]}
            shape = {"output": [item], "status": "completed"} if self.path.endswith("/responses") else {"choices": [choice]}
            data = orjson.dumps(shape)
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", asked
    listening.shutdown()
    listening.server_close()


Configure = Callable[..., DistillSettings]


@pytest.fixture
def configure(tmp_path: Path, server: tuple[str, Asked], monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Settings with a file of two teachers, `a` with a key and `b` as given, and none of the environment's."""

    def configure(b: str = "", **changes: Any) -> DistillSettings:
        monkeypatch.setenv("A_KEY", "sk-a")
        azure = 'key_env = "A_KEY"\nformat = "azure-deployments"\napi_version = "2024-10-21"\nheaders = { x-team = "t" }'
        each = [("a", server[0], azure), ("b", f"{server[0]}/v1", b)]
        tables = [f'[[teacher]]\nname = "{name}"\nmodels = ["{name}-*"]\nurl = "{url}"\n{more}\n' for name, url, more in each]
        (tmp_path / "teachers.toml").write_text("".join(tables))
        return DistillSettings(**{"home": tmp_path, "teachers": tmp_path / "teachers.toml", **changes})

    return configure


ROW = Row(pair_id="p", messages=[], tools=None, response_format=None, completion={"role": "assistant", "content": "t0"})


def ask(settings: DistillSettings, *models: object, endpoint: str = CHAT) -> list[list[str]]:
    """What is answered for each model, twice or not."""
    questions = [Question(ROW, {"model": model, "messages": []}, endpoint) for model in models]
    with Teacher(settings, questions, times=2 * len(questions)) as teacher:
        return [[str(message["content"]) for message in teacher.answer_twice(question)] for question in questions]


def test_each_model_is_asked_at_its_own_teacher(configure: Configure, server: tuple[str, Asked]) -> None:
    settings = configure('key_file = "b.key"')
    (settings.home / "b.key").write_text("sk-b\n")
    a, b = "/openai/deployments/a-1/chat/completions?api-version=2024-10-21", "/v1/chat/completions"
    assert ask(settings, "a-1", "b-1") == [[a, a], [b, b]]
    (_, first, body), *_, (_, last, _) = server[1]
    assert (first["api-key"], first["x-team"], first.get("authorization")) == ("sk-a", "t", None)
    assert last["authorization"] == "Bearer sk-b"
    assert body == {"model": "a-1", "messages": []}


def test_nobody_is_asked_unless_everybody_can_be(configure: Configure, server: tuple[str, Asked]) -> None:
    assert ask(configure(), "a-1", "b-1") == [[], []]  # b has no key of the operator's
    assert ask(configure(), "a-1", "c-1") == [[], []]  # c has no teacher
    assert ask(configure(), "a-1", None) == [[], []]
    assert server[1] == []
    assert len(ask(configure(), "a-1")[0]) == 2


def test_what_is_not_wanted_is_not_asked(configure: Configure, server: tuple[str, Asked]) -> None:
    assert ask(configure(reask=False), "a-1") == [[]]
    assert ask(configure(reask_budget=1), "a-1") == [[]]
    assert server[1] == []


@pytest.mark.parametrize("b", ['key_env = "NO_SUCH_KEY"', 'key = "sk-secret"'])
def test_a_file_or_a_key_that_cannot_be_used_is_told_and_the_evaluation_goes_on(
    configure: Configure, caplog: pytest.LogCaptureFixture, b: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert ask(configure(b), "b-1") == [[]]
    assert "teacher 'b'" in caplog.text
    assert "sk-secret" not in caplog.text


def test_without_a_file_the_environments_teacher_is_asked_if_there_is_a_key(tmp_path: Path, server: tuple[str, Asked]) -> None:
    settings = DistillSettings(home=tmp_path, teacher_url=f"{server[0]}/v1/", teacher_key=SecretStr("sk-1"), teachers=None)
    assert ask(settings, "any") == [["/v1/chat/completions"] * 2]
    assert server[1][0][1]["authorization"] == "Bearer sk-1"
    assert ask(settings.model_copy(update={"teacher_key": None}), "any") == [[]]


def test_one_refusal_ends_the_asking(tmp_path: Path) -> None:
    settings = DistillSettings(home=tmp_path, teacher_url="http://no such host", teacher_key=SecretStr("sk-1"), teachers=None)
    assert ask(settings, "a", "b") == [[], []]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_teacher_is_asked_at_the_endpoint_that_the_client_asked(tmp_path: Path, server: tuple[str, Asked], endpoint: str) -> None:
    settings = DistillSettings(home=tmp_path, teacher_url=f"{server[0]}/v1", teacher_key=SecretStr("sk-1"), teachers=None)
    assert ask(settings, "any", endpoint=endpoint) == [[endpoint] * 2]
