"""`python -m proxy` as a process: killed under load, stopped, and searched for secrets."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.proxy.conftest import KEY, chat, until
from tests.proxy.upstream import completion, events, hang, json, stream

COOKIE = "session-canary-51c0"


class Process:
    """A proxy in its own process; its log is in a file."""

    def __init__(self, home: Path, teacher_url: str, log: Path) -> None:
        settings = {"HOME": str(home), "PROXY_PORT": "0", "TEACHER_URL": f"{teacher_url}/v1"}
        self._log = log
        self._seen = len(self.log())
        with log.open("ab") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "proxy"],
                env={**os.environ, **{f"STILLROOM_{name}": value for name, value in settings.items()}},
                stdout=out,
                stderr=out,
                cwd=Path(__file__).parents[2],
            )

    @property
    def url(self) -> str:
        found = until(lambda: re.search(r"running on (http://\S+)", self.log()[self._seen :]), 120)
        return str(found[1])

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


@pytest.fixture
def launch(home, teacher, tmp_path):
    running: list[Process] = []

    def launch() -> Process:
        running.append(Process(home, teacher.url, tmp_path / "log"))
        return running[-1]

    yield launch
    for process in running:
        process.child.kill()
        process.child.wait()


def rows(home: Path, what: str, where: str = "true") -> list[tuple]:
    both = "SELECT captures.*, status, http_status FROM captures JOIN capture_kinds ON capture_kinds.id = kind_id"
    with sqlite3.connect(home / "stillroom.db", timeout=30) as database:
        return database.execute(f"SELECT {what} FROM ({both}) WHERE {where}").fetchall()


class Ledger:
    """Clients that send without a pause, and note every id whose answer they have whole."""

    def __init__(self, url: str) -> None:
        self.acknowledged: set[str] = set()
        self.begun: set[str] = set()
        self._url = url
        self._threads = [threading.Thread(target=self._send, args=(n % 2 == 0,)) for n in range(6)]
        for thread in self._threads:
            thread.start()

    def run_until(self, count: int) -> None:
        until(lambda: len(self.acknowledged) > count, 60)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _send(self, streamed: bool) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as client:
            try:
                while True:
                    with client.stream("POST", "/v1/chat/completions", json=chat(stream=streamed)) as answer:
                        id = answer.headers["x-stillroom-id"]
                        self.begun.add(id)
                        body = b""
                        for chunk in answer.iter_raw():
                            body += chunk
                            if b"[DONE]" in body:  # what the SDKs take for the end
                                self.acknowledged.add(id)
                    self.acknowledged.add(id)
            except httpx.TransportError:
                return  # the proxy is dead


def test_kill_9_under_load_loses_nothing_that_was_acknowledged(launch, home, teacher):
    async def both(exchange):
        reply = stream(events("a", "b", "c"), pause=0.01) if exchange.seen.json["stream"] else json(completion("whole"))
        return await reply(exchange)

    teacher.reply = both
    ledger, open_now = [], set()
    for _ in range(2):
        process = launch()
        clients = Ledger(process.url)
        clients.run_until(60)
        process.child.kill()
        clients.join()
        process.child.wait()
        ledger.append(clients)
        open_now |= clients.begun - clients.acknowledged
    assert launch().url
    spool = home / "spool"
    until(lambda: len([folder for folder in spool.iterdir() if any(folder.glob("*.seg"))]) == 0, 20)
    stored = dict(rows(home, "id, status"))
    acknowledged = set.union(*(clients.acknowledged for clients in ledger))
    assert len(acknowledged) > 120
    assert len(stored) == len(rows(home, "id"))
    assert acknowledged <= {id for id, status in stored.items() if status == "complete"}
    assert open_now
    assert open_now <= stored.keys()
    unfinished = rows(home, "error, http_status, packed IS NOT NULL", "status != 'complete'")
    assert set(unfinished) == {("the proxy was stopped during this exchange", None, 1)}


def test_sigterm_lets_an_answer_end_stores_it_and_exits_with_0(launch, home, teacher):
    teacher.reply = stream(events("slow", "ly"), pause=0.2)
    process, got = launch(), []
    sender = threading.Thread(target=lambda: got.append(httpx.post(f"{process.url}/v1/chat/completions", json=chat(stream=True))))
    sender.start()
    until(lambda: teacher.seen)
    process.child.send_signal(signal.SIGTERM)
    sender.join(10)
    assert process.child.wait(10) == 0
    assert got[0].content.endswith(b"data: [DONE]\n\n")
    assert rows(home, "id, status") == [(got[0].headers["x-stillroom-id"], "complete")]
    assert not any(path.is_dir() for path in (home / "spool").iterdir())


def test_a_key_or_a_cookie_is_never_written_anywhere(launch, home, teacher, tmp_path):
    (home / "stillroom.db").mkdir(parents=True)  # SQLite cannot open a folder: everything stays in the spool
    process = launch()
    secrets = {"Authorization": f"Bearer {KEY}", "api-key": KEY, "x-api-key": KEY, "Cookie": COOKIE, "Proxy-Authorization": KEY}
    with httpx.Client(base_url=process.url, headers=secrets, timeout=10) as client:
        teacher.reply = json(completion("ok"), headers=[("Set-Cookie", COOKIE)])
        client.post("/v1/chat/completions", json=chat())
        client.post("/v1/embeddings", json={})
        client.get(f"/v1/models?api_key={KEY}")
        client.post("/v1/chat/completions", content=b"{")
        teacher.reply = json({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401)
        client.post("/v1/chat/completions", json=chat())
        teacher.reply = stream(events("half")[:2], after="cut", headers=[("Set-Cookie", COOKIE)])
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/v1/chat/completions", json=chat(stream=True))
        teacher.reply = hang
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=chat(), timeout=0.3)
        teacher.stop()
        client.post("/v1/chat/completions", json=chat())
        httpx.get(f"{process.url}/v1/x", headers={"Authorization": KEY.encode() + b"\x01"})
    assert {".seg", ""} <= searched(tmp_path)
    (home / "stillroom.db").rmdir()
    until(lambda: httpx.get(f"{process.url}/readyz").json()["database"] == "ok", 20)
    assert len(rows(home, "id")) == 5
    process.child.send_signal(signal.SIGSTOP)
    assert {".db", ""} <= searched(tmp_path)


def searched(root: Path) -> set[str]:
    """The suffixes of the files, the log's being none, in which there is no secret."""
    written = [path for path in root.rglob("*") if path.is_file()]
    for path in written:
        for secret in (KEY, COOKIE):
            assert secret.encode() not in path.read_bytes(), path
    return {path.suffix for path in written}
