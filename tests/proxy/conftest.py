"""Real proxies on free ports, with a teacher and a student that do as they are told, and SQLite in a temporary folder."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import orjson
import pytest
from sqlmodel import select

from proxy.drainer import Drainer
from proxy.settings import ProxySettings
from proxy.worker import make_server
from store import migrate, routes, tasks
from store.session import Database
from store.states import EngineStatus
from store.tables import Capture, Engine
from tests.proxy.upstream import Upstream, completion, json

KEY = "sk-canary-7f3a9d"
SYSTEM = {"role": "system", "content": "Sort the ticket."}
ADAPTER = "task_x@v1"


def chat(prompt: str = "hello", **fields: Any) -> dict[str, Any]:
    """A chat completion request."""
    return {"model": "big-1", "messages": [SYSTEM, {"role": "user", "content": prompt}], **fields}


T = TypeVar("T")


def until(look: Callable[[], T], seconds: float = 10.0) -> T:
    """What `look` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"still {found!r} after {seconds} s"
        time.sleep(0.02)
    return found


class Running:
    """A worker and the drainer in threads of this process, just as `python -m proxy` has them in processes."""

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        self._drainer = Drainer(Database(settings.url), settings.home_path / "spool")
        self._server = make_server(settings)
        self._drainer.start()
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20)

    def chat(self, request: dict[str, Any] | bytes | None = None, **headers: str) -> httpx.Response:
        body = request if isinstance(request, bytes) else orjson.dumps(request or chat())
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json", **named})

    def ready(self) -> dict[str, Any]:
        return dict(self.client.get("/readyz").json())

    def stop(self, wait: bool = True) -> None:
        self.client.close()
        self._server.should_exit = True
        if wait:
            self._thread.join(60)
            assert not self._thread.is_alive()
            self._drainer.stop(10)
        else:
            threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        self._thread.join(60)
        self._drainer.stop(10)


@pytest.fixture
def teacher() -> Iterator[Upstream]:
    upstream = Upstream()
    upstream.reply = json(completion("from the teacher"))
    yield upstream
    upstream.stop()


@pytest.fixture
def student() -> Iterator[Upstream]:
    upstream = Upstream()
    upstream.reply = json(completion("from the student"))
    yield upstream
    upstream.stop()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def db(home: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{home}/stillroom.db")
    migrate.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def start(home: Path, teacher: Upstream) -> Iterator[Callable[..., Running]]:
    """Starts proxies on the home folder, stopped at the end; settings as given."""
    running: list[Running] = []

    def start(**settings: Any) -> Running:
        wiring = {"home": home, "proxy_port": 0, "teacher_url": f"{teacher.url}/v1", "route_seconds": 0.05, "student_timeout": 10.0}
        running.append(Running(ProxySettings(**{**wiring, **settings})))
        return running[-1]

    yield start
    for proxy in running:
        proxy.stop(wait=False)  # it ends on its own; the next test has other folders and ports


@pytest.fixture
def route(db: Database, student: Upstream) -> Callable[..., None]:
    """Gives the task of `chat()` to the student; `proxy` has seen it when this returns, and trusts KEY."""

    def route(proxy: Running, *, holdback: float = 0.0, request: dict[str, Any] | None = None, trust: bool = True) -> None:
        with db.begin() as session:
            session.merge(Engine(id="e-1", url=student.url, status=EngineStatus.READY, loaded=[ADAPTER]))
            identity = tasks.identify(request or chat())
            routes.point(session, identity.id, ADAPTER, holdback=holdback, by="test", why="test")
        with db.read() as session:
            table = routes.read(session)
        until(lambda: (proxy.ready()["routes"], len(proxy.ready()["engines"])) == (len(table.targets), len(table.engines)))
        if trust:
            proxy.chat(x_stillroom_route="teacher", x_stillroom_capture="off").raise_for_status()

    return route


@pytest.fixture
def captures(db: Database) -> Callable[..., list[Capture]]:
    """The captures in the database, oldest first, once there are so many."""

    def captures(count: int) -> list[Capture]:
        def look() -> list[Capture]:
            with db.read() as session:
                found = list(session.exec(select(Capture).order_by(Capture.id)))
            return found if len(found) >= count else []

        found = until(look)
        assert len(found) == count
        return found

    return captures
