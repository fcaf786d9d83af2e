"""The wiring of one worker: FastAPI for the proxy's own pages, `serve` for /v1."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from proxy import completions, news, passthrough
from proxy.board import FOLDER, Board
from proxy.client import Client, Gone
from proxy.completions import Completions
from proxy.errors import Refusal
from proxy.keys import Gate
from proxy.metrics import Counters, Snapshot
from proxy.routing import Routes
from proxy.settings import ProxySettings
from proxy.spool import Folder, Spool
from proxy.student import Students
from proxy.teachers import Teachers
from proxy.websocket import Relay
from store.session import Database

log = logging.getLogger("stillroom.proxy")

_TICK = 1.0  # seconds


class Connection(Protocol):
    """A client's connection, as `proxy.server` has it."""

    @property
    def busy(self) -> bool:
        """Whether a request below /v1 is being answered on it."""

    def leave(self) -> None:
        """Give up the request that is being answered."""

    def tick(self) -> None:
        """Once a second: close it if it has been idle for too long."""


class Proxy:
    """The ASGI application, and what `proxy.server` asks for /v1. Made once a process, after any fork."""

    def __init__(self, settings: ProxySettings) -> None:
        self._root = settings.home_path / "spool"
        self.counters = Counters()
        self._board = Board(settings.home_path / FOLDER, self._counted)
        db = Database(settings.url)
        self._spool = Spool(
            Folder.make(self._root),
            max_bytes=settings.spool_max_bytes,
            segment_bytes=settings.spool_segment_bytes,
            durability=settings.durability,
            counters=self.counters,
        )
        self._routes = Routes(db, settings.route_seconds)
        self._teachers = Teachers(settings)
        self._gate = Gate(settings.require_key, settings.home_path / "run")
        self._students = Students(timeout=settings.student_timeout)
        self._completions = Completions(
            settings, self._gate, self._teachers, self._students, self._routes, self._spool, self.counters, self.spawn
        )
        self._db = db
        self.connections: set[Connection] = set()  #: which register themselves
        self._pages = self._make_pages()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._pages(scope, receive, send)

    def accept(self, client: Client, relay: Relay | None) -> None:
        """Answer one request below /v1, or break its connection off. With a `relay` it asks for a WebSocket."""
        try:
            if b"/." in client.raw_path or b"%2" in client.raw_path:
                _check(client.raw_path)
            client.key = self._gate.admit(client.head, self._routes.table.keys)
            if client.method == "POST" and client.raw_path in completions.ENDPOINTS and relay is None:
                if not self._completions.quick(client):
                    self.spawn(client, self._completions.handle(client))
            else:
                if client.method != "GET" or not client.raw_path.startswith(b"/v1/models"):
                    self._gate.permit(client.key, None)
                self.spawn(client, passthrough.handle(client, self._teachers, self.counters, relay))
        except Refusal as refusal:
            self._refuse(client, refusal)
        except Exception:  # noqa: BLE001 - of any request: the connection's reader must go on
            self._fail(client)

    def spawn(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        """Let a task handle the request from here on."""
        client.handled_by(asyncio.get_running_loop().create_task(self._guarded(client, work)))

    async def _guarded(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Refusal as refusal:
            self._refuse(client, refusal)
        except Gone:
            return
        except asyncio.CancelledError:
            if not client.gone:
                raise
        except Exception:  # noqa: BLE001 - of any request: the others go on
            self._fail(client)
        finally:
            if not client.response_complete and not client.finishing:
                client.cut()

    def _refuse(self, client: Client, refusal: Refusal) -> None:
        self.counters.refused(refusal.code)
        client.refuse(refusal, [(b"x-stillroom-id", client.id.encode())])

    def _fail(self, client: Client) -> None:
        """An error that nobody has foreseen is being handled."""
        log.exception("%s: %s %r failed", client.id, client.method, client.raw_path)
        self._refuse(client, Refusal(500, "internal_error", "stillroom failed on this request; its log says why."))

    def _counted(self) -> Snapshot:
        self.counters.breakers({url: breaker.state for url, breaker in self._students.breakers.items()})
        return self.counters.snapshot()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._spool.tick()
            for connection in [*self.connections]:
                connection.tick()
            await asyncio.to_thread(self._board.publish)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._routes.start()
        ticking = asyncio.create_task(self._tick())
        yield
        ticking.cancel()
        for connection in [*self.connections]:  # the server has waited for them long enough
            connection.leave()
        for _attempt in range(100):
            if not any(connection.busy for connection in self.connections):
                break
            await asyncio.sleep(0.02)
        await self._teachers.close()
        await self._students.close()
        await asyncio.to_thread(self._routes.stop)
        with suppress(OSError):
            self._spool.close()
        await asyncio.to_thread(self._board.close)
        self._db.close()

    def _make_pages(self) -> FastAPI:
        pages = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan)

        @pages.get("/healthz")
        async def healthz() -> dict[str, str]:
            return {"status": "ok"}

        @pages.get("/readyz")
        async def readyz() -> dict[str, Any]:
            table, breakers = self._routes.table, self._students.breakers
            return {
                "status": "ok",
                "spool_bytes": self._spool.held,
                "spool": self._spool.full or "ok",
                **news.read(self._root),
                "engines": {url: breakers[url].state if url in breakers else "closed" for url in table.engines},
                "routes": len(table.targets),
                "routes_age_seconds": self._routes.age,
                "uncaptured": self._spool.uncaptured,
            }

        @pages.get("/metrics")
        async def metrics(request: Request) -> Response:
            try:
                body, kind = await asyncio.to_thread(self._board.render, request.headers.get("accept"))
            except OSError as error:  # a part of the sum would look like a restart
                raise HTTPException(503, f"the counts of the other processes cannot be read: {error}") from error
            return Response(body, media_type=kind.decode())

        @pages.exception_handler(HTTPException)
        async def unknown(request: Request, error: HTTPException) -> Response:
            message = f"There is no {request.method} {request.url.path} here: the API's base URL ends in /v1."
            if error.status_code == 503:
                return Response(Refusal(503, "unavailable", error.detail).body, 503, media_type="application/json")
            refused = Refusal(404, "unknown_path", message).body
            return Response(refused, error.status_code, error.headers, media_type="application/json")  # 405 says what it allows

        return pages


def _check(raw_path: bytes) -> None:
    segments = raw_path.lower().replace(b"%2e", b".").replace(b"%2f", b"/").split(b"/")
    if b"." in segments or b".." in segments:
        raise Refusal(400, "bad_path", "The path has a segment . or .. in it: write it without.")
