"""Frameworks of others make real calls through the proxy, whole and streamed: the right text comes out, and each is captured."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from sqlmodel import select

from store import answers
from store.states import CaptureStatus
from store.tables import Capture
from tests.proxy.conftest import until
from tests.sdk.conftest import CLIENTS, Proxy
from tests.sdk.mock import TEXT, Mock

HERE = Path(__file__).parent
PYTHON = [str(CLIENTS / "clients/bin/python"), str(HERE / "frameworks.py")]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.mark.parametrize(
    ("command", "endpoints"),
    [
        ([*PYTHON, "langchain"], [CHAT, CHAT]),
        ([*PYTHON, "llamaindex"], [CHAT, CHAT]),
        ([*PYTHON, "instructor"], [CHAT, CHAT]),
        ([*PYTHON, "agents"], [CHAT, CHAT, RESPONSES, RESPONSES]),
        (["node", str(HERE / "node/ai.mjs")], [CHAT, CHAT, RESPONSES, RESPONSES]),
    ],
    ids=["langchain", "llamaindex", "instructor", "agents", "vercel"],
)
def test_it_gets_its_answers_and_they_are_captured(proxy: Proxy, teacher: Mock, command: list[str], endpoints: list[str]):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*command, proxy.url], capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    expected = "Zürich" if "instructor" in command else TEXT
    assert json.loads(done.stdout) == [expected] * len(endpoints)

    def stored() -> list[Capture]:
        with proxy.db.read() as session:
            found = list(session.exec(select(Capture)))
        return sorted(found, key=lambda each: (each.endpoint, each.stream)) if len(found) >= len(endpoints) else []

    captures = until(stored)
    assert [(each.endpoint, each.stream) for each in captures] == [(where, n % 2 == 1) for n, where in enumerate(endpoints)]
    for capture in captures:
        assert (capture.status, capture.http_status, capture.error) == (CaptureStatus.COMPLETE, 200, None)
        answer = answers.read(capture.response, stream=capture.stream, endpoint=capture.endpoint)
        assert expected in answers.text_of(answer.message)
        assert capture.request in [seen.body for seen in teacher.seen]
