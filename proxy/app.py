"""The wiring: FastAPI for the proxy's own pages, a bare ASGI callable ahead of it for /v1."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from proxy import completions, passthrough
from proxy.client import Client, Gone, Receive, Scope, Send
from proxy.completions import Completions
from proxy.drainer import Drainer
from proxy.errors import Refusal
from proxy.routing import Routes
from proxy.settings import ProxySettings
from proxy.spool import Folder, Spool
from proxy.student import Students
from proxy.teacher import Teacher
from store.session import Database

log = logging.getLogger("stillroom.proxy")

FLUSH_SECONDS = 10.0


class Proxy:
    """The ASGI application. Made once a process, after any fork."""

    def __init__(self, settings: ProxySettings) -> None:
        root = settings.home_path / "spool"
        db = Database(settings.url)
        self._spool = Spool(Folder.make(root), max_bytes=settings.spool_max_bytes, segment_bytes=settings.spool_segment_bytes)
        self._drainer = Drainer(db, root, self._spool)
        self._routes = Routes(db, settings.route_seconds)
        self._teacher = Teacher(settings)
        self._students = Students(timeout=settings.student_timeout)
        self._completions = Completions(settings, self._teacher, self._students, self._routes, self._spool)
        self._db = db
        self._open = 0
        self._pages = self._make_pages()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["raw_path"].startswith(b"/v1/") or scope["raw_path"] == b"/v1"):
            await self._serve(Client(scope, receive, send))
        else:
            await self._pages(scope, receive, send)

    async def _serve(self, client: Client) -> None:
        self._open += 1
        try:
            if {".", ".."} & set(client.path.split("/")):
                raise Refusal(400, "bad_path", "The path has a segment . or .. in it: write it without.")
            if client.raw_path == completions.PATH and client.method == "POST":
                await self._completions.handle(client)
            else:
                await passthrough.handle(client, self._teacher)
        except Refusal as refusal:
            await client.refuse(refusal, [(b"x-stillroom-id", client.id.encode())])
        except (Gone, asyncio.CancelledError):
            if not client.gone:
                raise
        except Exception:
            log.exception("%s: %s %r failed", client.id, client.method, client.raw_path)
            if client.started:
                raise
            failure = Refusal(500, "internal_error", "stillroom failed on this request; its log says why.")
            await client.refuse(failure, [(b"x-stillroom-id", client.id.encode())])
        finally:
            client.unwatch()
            self._open -= 1

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._drainer.start()
        self._routes.start()
        yield
        for _attempt in range(100):  # those that the server has just cancelled write their ends
            if not self._open:
                break
            await asyncio.sleep(0.02)
        await self._teacher.close()
        await self._students.close()
        await asyncio.to_thread(self._routes.stop)
        await asyncio.to_thread(self._drainer.stop, FLUSH_SECONDS)
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
                "spool_bytes": self._spool.bytes + self._spool.beside,
                "database": self._drainer.database,
                "engines": {url: breakers[url].state if url in breakers else "closed" for url in table.engines},
                "routes": len(table.targets),
                "routes_age_seconds": self._routes.age,
                "uncaptured": self._spool.uncaptured,
                "rejected": self._drainer.rejected,
            }

        @pages.exception_handler(HTTPException)
        async def unknown(request: Request, error: HTTPException) -> Response:
            message = f"There is no {request.method} {request.url.path} here: the API's base URL ends in /v1."
            return Response(Refusal(404, "unknown_path", message).body, error.status_code, media_type="application/json")

        return pages
