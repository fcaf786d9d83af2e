"""A key is sent in every place that a key can be, and is found nowhere that anything is written.

What a person writes into a prompt is content, and stays.
"""

import base64
import gzip
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlmodel import SQLModel, select

from store import keys
from store.tables import Capture
from tests.proxy.conftest import chat, until
from tests.proxy.upstream import Exchange, Upstream, completion, events, hang, json, stream
from tests.proxy.wire import Wire, get, post

ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
ASKED = orjson.dumps({**chat("my own words"), "prompt": "my own words", "input": "my own words"})
ASKED_STREAM = orjson.dumps({**orjson.loads(ASKED), "stream": True})


def canary(place: str) -> str:
    return f"sk-canary-{place}-5c1e7f3a"


BASIC = base64.b64encode(f"user:{canary('basic')}".encode()).decode()
PLACED = {  # a request each: an API takes one key
    "authorization": ("", [f"Authorization: Bearer {canary('authorization')}"]),
    "lower": ("", [f"authorization: bearer {canary('lower')}"]),
    "bare": ("", [f"Authorization: {canary('bare')}"]),
    "basic": ("", [f"Authorization: Basic {BASIC}"]),
    "api-key": ("", [f"api-key: {canary('api-key')}"]),
    "x-api-key": ("", [f"X-API-Key: {canary('x-api-key')}"]),
    "google": ("", [f"x-goog-api-key: {canary('google')}"]),
    "cookie": ("", [f"Cookie: session={canary('cookie')}; other=1"]),
    "proxy": ("", [f"Proxy-Authorization: Basic {canary('proxy')}"]),
    "query": (f"?api-key={canary('query')}&api-version=2024-10-21", []),
    "query2": (f"?x=1&key={canary('query2')}", []),
    "query3": (f"?api_key={canary('query3')}", []),
    "protocol": ("", [f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{canary('protocol')}"]),
    "twice": ("", [f"Authorization: Bearer {canary('twice')}", f"Authorization: Bearer {canary('second')}"]),
}
NEEDLES = [*(canary(place) for place in (*PLACED, "second", "password", "operator")), BASIC]


async def quotes(exchange: Exchange) -> bool:
    """Refuses, as x-status says, and repeats all it was sent in its body and its headers."""
    said = [*(value for _, value in exchange.seen.headers), exchange.seen.target]
    status = int((exchange.seen.header("x-status") or ["401"])[0])
    body = orjson.dumps({"error": {"message": "Incorrect API key provided: " + " | ".join(said), "type": "t", "code": "c"}})
    headers = [("X-Error", said[1]), ("Set-Cookie", f"k={canary('cookie')}"), ("WWW-Authenticate", f'Bearer realm="{said[-1]}"')]
    if exchange.seen.header("x-packed"):
        return bool(await json(gzip.compress(body), status, [*headers, ("Content-Encoding", "gzip")])(exchange))
    return bool(await json(body, status, headers)(exchange))


class Place:
    """A proxy as processes, with a collector for its traces; everything that it writes is below `root`."""

    def __init__(self, root: Path, collector: Upstream, **named: str) -> None:
        self.root, self.home, self._log = root, root / "home", root / "log"
        settings = {f"STILLROOM_{name}": value for name, value in {"HOME": str(self.home), "PROXY_PORT": "0", **named}.items()}
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200",
                "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}  # fmt: skip
        with self._log.open("wb") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "proxy"],
                env={**os.environ, **told, **settings, "THE_TEACHERS_KEY": canary("operator")},
                stdout=out,
                stderr=out,
                cwd=Path(__file__).parents[2],
            )
        self.url = str(until(lambda: re.search(r"running on (http://\S+)", self._log.read_text()), 60)[1])
        until(lambda: httpx.get(f"{self.url}/readyz").json()["routes_age_seconds"] is not None)

    def ask(self, path: str, place: str = "authorization", body: bytes = ASKED, *headers: str) -> Any:
        query, placed = PLACED[place]
        with Wire(self.url) as wire:
            return wire.post(body, path + query, *placed, *headers).answer()

    def stop(self) -> None:
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(60)


@pytest.fixture
def collector() -> Iterator[Upstream]:
    upstream = Upstream()
    upstream.reply = json(b"", headers=[("X", "y")])
    yield upstream
    upstream.stop()


@pytest.fixture
def place(db, collector, tmp_path) -> Iterator[Callable[..., Place]]:
    running: list[Place] = []

    def place(**named: str) -> Place:
        running.append(Place(tmp_path, collector, **named))
        return running[-1]

    yield place
    for each in running:
        each.child.kill()
        each.child.wait()


def files(root: Path, *more: str) -> dict[str, bytes]:
    """What is in all files below `root`, in which no canary is found."""
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for name, data in found.items():
        assert not [needle for needle in (*NEEDLES, *more) if needle.encode() in data], name
    return found


def rows(db: Any) -> bytes:
    """All that the database says, bodies unpacked."""
    with db.read() as session:
        captures = [repr(capture.parts()) + repr(vars(capture)) for capture in session.exec(select(Capture))]
        tables = [table for table in SQLModel.metadata.sorted_tables if table.name != "captures"]
        return "\n".join([*captures, *(repr(session.execute(table.select()).all()) for table in tables)]).encode()


def drained(home: Path) -> bool:
    """Whether nothing waits in the spool."""
    with suppress(FileNotFoundError):  # gone since it was listed: look again
        return not [path for path in (home / "spool").glob("*-*/*.seg") if path.stat().st_size]
    return False


def reject_some(home: Path) -> None:
    with sqlite3.connect(home / "stillroom.db") as database:
        database.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON captures WHEN NEW.error LIKE '%not-this-one%' "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )


def test_no_key_of_a_client_is_written_anywhere(db, place, teacher, collector, home, tmp_path):
    reject_some(home)
    proxy = place(TEACHER_URL=f"http://user:{canary('password')}@127.0.0.1:{teacher.port}/v1", READ_TIMEOUT="0.5")
    locked = sqlite3.connect(home / "stillroom.db", timeout=30)
    locked.execute("BEGIN IMMEDIATE")  # all stays in the spool
    count = 0
    for where in PLACED:
        for path in ENDPOINTS:
            teacher.reply = json(completion("fine"), headers=[("Set-Cookie", f"k={canary('cookie')}")])
            assert proxy.ask(path, where).status == 200
            teacher.reply = quotes
            for status, more in ((401, []), (403, []), (401, ["X-Packed: 1"]), (400, []), (429, []), (500, [])):
                said = proxy.ask(path, where, ASKED, f"X-Status: {status}", *more)
                assert said.status == status
                assert more or b"Incorrect" in said.body  # the client sees what the teacher says
            count += 7
        teacher.reply = quotes
        for path in ("/v1/embeddings", f"/v1/files/{where}", "/v1/models"):
            proxy.ask(path, where)
        proxy.ask(ENDPOINTS[0], where, b"{")
        proxy.ask("/healthz", where)
        proxy.ask("/nothing", where)
        proxy.ask("/v1/../x", where)
    odd = [("X-Stillroom-Route: nobody", 400), ("X-Stillroom-Task: !", 400), ("Connection: Upgrade\r\nUpgrade: websocket", 401)]
    for header, status in odd:
        assert proxy.ask("/v1/realtime" if status == 401 else ENDPOINTS[0], "protocol", ASKED, header).status == status
    with Wire(proxy.url) as wire:
        wire.send(get("/v1/x", f"Authorization: {canary('bare')}\x01")).answer()
    with Wire(proxy.url) as wire:
        wire.send(post(ASKED, ENDPOINTS[0], f"Authorization: {canary('bare')}", "Content-Length: 5")).answer()
    for reply in (stream(events("half")[:2], after="cut", headers=[("Set-Cookie", canary("cookie"))]), hang):
        teacher.reply = reply
        proxy.ask(ENDPOINTS[0], "authorization", ASKED_STREAM)
        count += 1
    written = files(tmp_path)
    assert any(name.endswith(".seg") and b"my own words" in data for name, data in written.items())
    locked.rollback()
    locked.close()
    until(lambda: drained(home), 40)
    teacher.reply = quotes
    for where in PLACED:
        proxy.ask(ENDPOINTS[0], where, ASKED, "X-Why: not-this-one")
    teacher.stop()
    proxy.ask(ENDPOINTS[0])
    until(lambda: drained(home), 40)
    pages = [httpx.get(f"{proxy.url}{page}").content for page in ("/metrics", "/readyz", "/healthz", "/nothing")]
    proxy.stop()
    stored = rows(db)
    with db.read() as session:
        kept = len(session.exec(select(Capture.id)).all())
    rejected = [data for name, data in files(tmp_path).items() if "rejected" in name]
    assert (len(rejected), kept) == (len(PLACED), count + 1)
    assert all(b"Incorrect API key provided: " in data for data in rejected)
    assert stored.count(b"Incorrect API key provided: ") > 50
    spans = b"".join(seen.body for seen in collector.seen)
    assert b"my own words" in spans
    for text in (stored, spans, *pages):
        assert not [needle for needle in NEEDLES if needle.encode() in text]


def test_no_key_of_the_operators_and_no_virtual_one_is_written_anywhere(db, place, teacher, collector, home, tmp_path):
    with db.begin() as session:
        secret = keys.make(session, "ci", by="test")[1]
        unknown = "sk-stillroom-" + "u" * 43
    (tmp_path / "teachers.toml").write_text(
        f'[[teacher]]\nname = "one"\nmodels = ["*"]\nurl = "{teacher.url}/v1"\nkey_env = "THE_TEACHERS_KEY"\ndefault = true\n'
    )
    proxy = place(TEACHERS=str(tmp_path / "teachers.toml"), TEACHER_KEY=canary("operator"), READ_TIMEOUT="0.5")
    with Wire(proxy.url) as wire:
        until(lambda: wire.post(ASKED, ENDPOINTS[0], f"Authorization: Bearer {secret}").answer().status == 200)
    headers = [f"Authorization: Bearer {secret}", f"api-key: {secret}", f"x-api-key: {secret}"]
    for header in headers:
        for path in ENDPOINTS:
            teacher.reply = json(completion("fine"))
            with Wire(proxy.url) as wire:
                assert wire.post(ASKED, path, header).answer().status == 200
                teacher.reply = quotes
                for status in (401, 403, 400, 429, 500):
                    assert wire.post(ASKED, path, header, f"X-Status: {status}").answer().status == status
                wire.post(ASKED, "/v1/embeddings", header).answer()
    for path, header in (
        (ENDPOINTS[0], f"Authorization: Bearer {unknown}"),
        (ENDPOINTS[0], f"Authorization: {unknown} {secret}"),
        (f"{ENDPOINTS[0]}?key={secret}", "X: y"),
        ("/v1/realtime", f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{secret}"),
        ("/healthz", headers[0]),
    ):
        with Wire(proxy.url) as wire:
            wire.post(ASKED, path, header).answer()
    assert secret not in str([(seen.headers, seen.target) for seen in teacher.seen])
    teacher.stop()
    with Wire(proxy.url) as wire:
        assert wire.post(ASKED, ENDPOINTS[0], headers[0]).answer().status == 502
    until(lambda: drained(home), 40)
    pages = [httpx.get(f"{proxy.url}{page}").content for page in ("/metrics", "/readyz")]
    proxy.stop()
    files(tmp_path, secret, unknown)
    spans = b"".join(seen.body for seen in collector.seen)
    stored = rows(db)
    assert b"my own words" in spans
    assert stored.count(b"Incorrect API key provided: ") > 20
    for text in (stored, spans, *pages):
        assert not [needle for needle in (*NEEDLES, secret, unknown) if needle.encode() in text]
