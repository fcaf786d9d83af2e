"""What a student can do wrong, at every endpoint: before its first text the client sees nothing of it, behind it one error.

The same for chat completions, and the breaker, are in test_student.py.
"""

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from store import routes, tasks
from store.states import CaptureStatus, EngineStatus, Server
from store.tables import Engine as EngineRow
from tests.proxy.conftest import ADAPTER, chat, until
from tests.proxy.engine import WORDS, Engine, parts, speaks, whole
from tests.proxy.upstream import Exchange, Reply, abort, hang, json, stream
from tests.proxy.wire import Wire, post, soon

CHAT, TEXT, RESPONSES = ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
ASKED: dict[str, dict[str, Any]] = {
    CHAT: chat(),
    TEXT: {"model": "big-1", "prompt": "hello"},
    RESPONSES: {"model": "big-1", "input": "hello", "store": False},
}
TASK = "X-Stillroom-Task: sorting"
TEACHER, STUDENT = "alpha", "omega"  #: what they say
TIMEOUT = 0.6


def body(path: str, streamed: bool) -> bytes:
    return orjson.dumps({**ASKED[path], "stream": streamed})


def said(path: str, streamed: bool) -> int:
    """How often a whole answer has its word."""
    return WORDS * 3 if path == RESPONSES and streamed else WORDS


def points_to_the_student(db: Any, *urls: str) -> None:
    with db.begin() as session:
        for number, url in enumerate(urls):
            session.merge(EngineRow(id=f"e-{number}", url=url, status=EngineStatus.READY, loaded=[ADAPTER]))
        routes.point(session, tasks.identify(chat(), "sorting").id, ADAPTER, holdback=0.0, by="test", why="test")


@pytest.fixture
def routed(start, db, teacher, student):
    """A proxy whose task is the student's, which may be any URLs; without a breaker that opens between two tests."""

    def routed(*urls: str) -> Any:
        teacher.reply, student.reply = speaks(TEACHER, 0), speaks(STUDENT, 0)
        proxy = start(student_timeout=TIMEOUT, teacher_key="sk-operator")
        points_to_the_student(db, *(urls or (student.url,)))
        until(lambda: (proxy.ready()["routes"], len(proxy.ready()["engines"])) == (1, len(urls) or 1))
        return proxy

    return routed


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(STUDENT, 0.05)
    yield engine
    engine.go_on()
    engine.kill()


def first(path: str) -> list[bytes]:
    """The events of a stream before its first text: one of each kind."""
    spoken = CHAT if path == TEXT else path
    return (
        [b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n']
        if spoken == CHAT
        else parts(path, STUDENT)[:2]
    )


def begins(path: str, then: str) -> Reply:
    return stream(first(path), after=then)


async def half_a_head(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Le")


async def half_a_body(exchange: Exchange) -> bool:
    await exchange.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"choices": [{')
    return False


async def drips(exchange: Exchange) -> None:
    """Never silent for long, and never done."""
    await exchange.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
    for _ in range(1000):
        await exchange.chunk(b": wait\n\n")
        await asyncio.sleep(0.05)


BAD: dict[str, Reply | Callable[[str], Reply]] = {
    "resets": abort,
    "dies in its head": half_a_head,
    "dies in its body": half_a_body,
    "hangs": hang,
    "drips": drips,
    "no adapter": json({"error": {"message": "The model does not exist", "code": 404}}, 404),
    "fails": json({"error": "x"}, 500),
    "is overloaded": json({"error": "x"}, 503),
    "refuses": json({"error": "too long"}, 400),
    "redirects": json({}, 307, [("Location", "/elsewhere")]),
    "garbage": json(b"\x00\xff<html>"),
    "no HTTP": lambda _: _no_http,
    "nothing": json(b""),
    "another protocol": lambda _: _switches,
}  # fmt: skip


async def _no_http(exchange: Exchange) -> bool:
    await exchange.write(b"\x16\x03\x01\x02\x00")
    return False


async def _switches(exchange: Exchange) -> bool:
    await exchange.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
    return False


def reply_of(name: str) -> Any:
    reply = BAD[name]
    return reply(CHAT) if getattr(reply, "__name__", "") == "<lambda>" else reply  # type: ignore[arg-type,call-arg]


@pytest.mark.parametrize("name", BAD)
def test_whatever_the_student_does_before_its_first_text_the_teacher_answers(routed, teacher, student, captures, name):
    proxy, number = routed(), 0
    for path in ENDPOINTS:
        for streamed in (False, True):
            student.reply = speaks(STUDENT, 0)  # keeps the breaker closed
            with Wire(proxy.url) as wire:
                fine = wire.post(body(path, streamed), path, TASK).answer()
                assert (fine.header("x-stillroom-served-by"), fine.body.count(b"omega ")) == ("student", said(path, streamed))
                student.reply = reply_of(name)
                with soon(TIMEOUT + 2):
                    answer = wire.post(body(path, streamed), path, TASK).answer()
            assert (answer.status, answer.whole, answer.header("x-stillroom-served-by")) == (200, True, "teacher")
            assert answer.body == (b"".join(parts(path, TEACHER)) if streamed else orjson.dumps(whole(path, TEACHER)))
            assert teacher.seen[-1].body == body(path, streamed)
            number += 2
    found = captures(number)
    assert {capture.status for capture in found} == {CaptureStatus.COMPLETE}
    assert Counter(capture.served_by for capture in found) == {Server.STUDENT: number // 2, Server.TEACHER: number // 2}
    assert all((capture.fallback is None) is (capture.served_by == Server.STUDENT) for capture in found)


@pytest.mark.parametrize("then", ["cut", "hang", "end"])
def test_a_stream_that_ends_before_its_first_text_is_the_teachers_to_answer(routed, student, captures, then):
    proxy = routed()
    for path in ENDPOINTS:
        student.reply = begins(path, then)
        with Wire(proxy.url) as wire, soon(TIMEOUT + 2):
            assert wire.post(body(path, True), path, TASK).answer().body == b"".join(parts(path, TEACHER))
    assert {capture.served_by for capture in captures(3)} == {Server.TEACHER}


@pytest.mark.parametrize("how", ["cut", "hang", "end", "garbage", "error"])
def test_a_stream_that_breaks_behind_its_first_text_ends_in_one_error_of_one_voice(routed, teacher, student, captures, how):
    proxy = routed()
    bad = {"garbage": [b"data: {\n\n"], "error": [b'data: {"error": {"message": "CUDA out of memory"}}\n\n']}
    for path in ENDPOINTS:
        sent = parts(CHAT if path == TEXT else path, STUDENT)[:-2]
        student.reply = stream([*sent, *bad.get(how, [])], after="hang" if how in bad else how)
        with Wire(proxy.url) as wire, soon(TIMEOUT + 2):
            answer = wire.post(body(path, True), path, TASK).answer()
        assert (answer.status, answer.whole, answer.header("x-stillroom-served-by")) == (200, False, "student")
        assert one_error(answer.body, path)
        assert b"CUDA" not in answer.body
    assert not teacher.seen
    for capture in captures(3):
        assert (capture.status, capture.served_by) == (CaptureStatus.INCOMPLETE, Server.STUDENT)
        assert b"student_died" not in capture.response


def one_error(stream: bytes, path: str) -> bool:
    """Whether a stream is the student's alone, and ends in one error that openai-python raises."""
    last = stream.rstrip(b"\n").split(b"data: ")[-1]
    ends = b"[DONE]" in stream or b"response.completed" in stream
    once = stream.count(b'"student_died"') == 1 and orjson.loads(last)["error"]["code"] == "student_died"
    return once and not ends and b"alpha " not in stream and 0 < stream.count(b"omega ") <= said(path, True)


def test_an_engine_that_is_killed_stopped_or_gone_is_not_noticed(routed, engine, captures):
    proxy, served = routed(engine.url), []
    for path in ENDPOINTS:
        for streamed in (True, False):
            for fault in (lambda: None, engine.pause, engine.kill):
                fault()
                with Wire(proxy.url) as wire, soon(TIMEOUT + 3):
                    answer = wire.post(body(path, streamed), path, TASK).answer()
                assert (answer.status, answer.whole) == (200, True)
                served.append(answer.header("x-stillroom-served-by"))
                voice = b"omega " if served[-1] == "student" else b"alpha "
                assert answer.body.count(voice) == said(path, streamed)
                engine.go_on()
            engine.start()
    assert served == ["student", "teacher", "teacher"] * 6
    assert {capture.status for capture in captures(18)} == {CaptureStatus.COMPLETE}


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_an_engine_that_dies_in_its_stream_ends_it_in_one_error(routed, engine, captures, fault):
    proxy = routed(engine.url)
    for path in ENDPOINTS:
        with Wire(proxy.url) as wire:
            wire.post(body(path, True), path, TASK)
            while b"omega " not in wire.peek():
                pass
            getattr(engine, fault)()
            with soon(TIMEOUT + 2):
                answer = wire.answer()
        assert not answer.whole
        assert one_error(answer.body, path)
        engine.go_on()
        if fault == "kill":
            engine.start()
    assert {capture.status for capture in captures(3)} == {CaptureStatus.INCOMPLETE}


class Running:
    """`python -m proxy`, as it runs in production."""

    def __init__(self, home: Path, teacher: Engine, log: Path) -> None:
        named = {"HOME": str(home), "PROXY_PORT": "0", "TEACHER_URL": f"{teacher.url}/v1", "TEACHER_KEY": "sk-operator",
                 "STUDENT_TIMEOUT": str(TIMEOUT), "ROUTE_SECONDS": "0.2"}  # fmt: skip
        self._log = log
        with log.open("wb") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "proxy"],
                env={**os.environ, **{f"STILLROOM_{name}": value for name, value in named.items()}},
                stdout=out,
                stderr=out,
                cwd=Path(__file__).parents[2],
            )

    @property
    def url(self) -> str:
        return str(until(lambda: re.search(r"running on (http://\S+)", self._log.read_text()), 60)[1])


class Chaos(threading.Thread):
    """Kills, stops and restarts engines at random, never all of them for long."""

    def __init__(self, engines: list[Engine], seed: int) -> None:
        super().__init__(daemon=True)
        self.done = Counter[str]()
        self._engines, self._random, self._halt = engines, random.Random(seed), threading.Event()

    def run(self) -> None:
        while not self._halt.wait(self._random.uniform(0.02, 0.15)):
            engine, what = self._random.choice(self._engines), self._random.choice(["kill", "pause", "gone"])
            self.done[what] += 1
            if what == "pause":
                engine.pause()
                self._halt.wait(self._random.uniform(0.1, 1.2))
                engine.go_on()
                continue
            engine.kill()
            if what == "gone":
                self._halt.wait(self._random.uniform(0.1, 1.0))
            engine.start()

    def stop(self) -> None:
        self._halt.set()
        self.join(10)


class Crowd:
    """Clients that ask until they all together have asked often enough."""

    def __init__(self, url: str, requests: int, clients: int) -> None:
        self.counts = Counter[str]()
        self.wrong: list[Any] = []
        self._left, self._clients = requests, clients
        self._host, self._port = httpx.URL(url).host, httpx.URL(url).port

    async def run(self) -> None:
        await asyncio.gather(*(self._client(random.Random(number)) for number in range(self._clients)))

    async def _client(self, chance: random.Random) -> None:
        reader = writer = None
        while self._left > 0:
            self._left -= 1
            if writer is None:
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
            path, streamed = chance.choice(ENDPOINTS), chance.random() < 0.5
            try:
                writer.write(post(body(path, streamed), path, TASK))
                async with asyncio.timeout(20):
                    head, sent, ended = await _answer(reader)
            except (OSError, EOFError, TimeoutError) as error:  # before an answer
                self.wrong.append((path, streamed, repr(error)))
                head, sent, ended = b"", b"", False
            else:
                self._judge(path, streamed, head, sent, ended)
            if not ended:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    def _judge(self, path: str, streamed: bool, head: bytes, sent: bytes, ended: bool) -> None:
        served = re.search(rb"x-stillroom-served-by: (\w+)", head)
        by = served[1].decode() if served else "nobody"
        mine, other = (b"omega ", b"alpha ") if by == "student" else (b"alpha ", b"omega ")
        good = head.startswith(b"HTTP/1.1 200") and other not in sent
        if ended and good and sent.count(mine) == said(path, streamed):
            self.counts[by] += 1
        elif not ended and good and by == "student" and streamed and one_error(sent, path):
            self.counts["died behind its first text"] += 1
        else:
            self.wrong.append((path, streamed, head, sent, ended))


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes, bool]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    body = b""
    try:
        if length:
            return head, await reader.readexactly(int(length[1])), True
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            body += (await reader.readexactly(size + 2))[:size]
        await reader.readexactly(2)
    except asyncio.IncompleteReadError:
        return head, body, False
    return head, body, True


def test_ten_thousand_requests_while_engines_die_stop_and_return_at_random_and_no_client_notices(
    db, home, tmp_path, record_property
):
    teacher, engines = Engine(TEACHER), [Engine(STUDENT, 0.003) for _ in range(4)]
    points_to_the_student(db, *(engine.url for engine in engines))
    proxy = Running(home, teacher, tmp_path / "log")
    chaos = Chaos(engines, seed=7)
    try:
        until(lambda: len(httpx.get(f"{proxy.url}/readyz").json()["engines"]) == 4, 20)
        crowd = Crowd(proxy.url, 10_000, clients=40)
        chaos.start()
        began = time.monotonic()
        asyncio.run(crowd.run())
        took = time.monotonic() - began
    finally:
        chaos.stop()
        for engine in [teacher, *engines]:
            engine.kill()
        proxy.child.terminate()
        proxy.child.wait(60)
    told = f"{dict(crowd.counts)} in {took:.1f} s, {dict(chaos.done)}"
    record_property("told", told)
    print(told)
    assert crowd.wrong == []
    assert sum(crowd.counts.values()) == 10_000
    assert min(crowd.counts["student"], crowd.counts["teacher"]) > 500, told
    assert crowd.counts["died behind its first text"] < 200, told
    assert min(chaos.done[what] for what in ("kill", "pause", "gone")) > 0, told
    with db.read() as session:
        counted = "SELECT served_by, status, count(*) FROM captures JOIN capture_kinds AS kind ON kind.id = kind_id GROUP BY 1, 2"
        stored = session.connection().exec_driver_sql(counted).all()
    rows = {(by, status): count for by, status, count in stored}
    assert rows == {
        ("teacher", "complete"): crowd.counts["teacher"],
        ("student", "complete"): crowd.counts["student"],
        **({("student", "incomplete"): died} if (died := crowd.counts["died behind its first text"]) else {}),
    }
