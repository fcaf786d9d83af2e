"""The admin API: endpoints, errors in one shape, documentation at /docs."""

import logging
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from admin import records
from admin.api import captures, keys, lineage, needs, runs, tasks
from admin.api import records as records_api
from admin.problems import Invalid, NotFound, Problem, Unavailable
from store.session import Database
from store.settings import StoreSettings

log = logging.getLogger("stillroom.admin")

TAGS = {
    "tasks": "The requests one student learns: where each stands, its name, status and policy.",
    "captures": "Logged exchanges, and what people say of them.",
    "pairs": "Captures fit to learn from.",
    "runs": "Trainings, with progress and loss curve.",
    "evaluations": "The student asked every held-out prompt through vLLM.",
    "adapters": "Trained students.",
    "decisions": "Train now, promote, roll back.",
    "transfer": "Pairs out, recorded exchanges in.",
    "keys": "Keys of stillroom's own, for clients of the proxy.",
    **{plural: kind.says for plural, kind in records.KINDS.items()},
    "states": "The glossary.",
}
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": needs.ErrorBody} for status in (401, 404, 409, 422, 503)}


def build(db: Database, settings: StoreSettings) -> FastAPI:
    """The API over a database, and the home folder that the settings name."""
    app = FastAPI(
        title="stillroom admin",
        summary="See what was captured, taught and decided; review, correct, decide.",
        description="Every call needs a bearer token: made with `stillroom token new --label NAME`.",
        openapi_tags=[{"name": name, "description": says} for name, says in TAGS.items()],
        redoc_url=None,
    )
    app.state.db, app.state.settings = db, settings
    for module in (tasks, captures, runs, lineage, keys, records_api):
        app.include_router(module.router, prefix="/api", dependencies=[Depends(needs.caller)], responses=ERRORS)

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> dict[str, str]:
        return {"status": "ok", "room": "admin"}

    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(OperationalError, _no_database)
    app.add_exception_handler(TimeoutError, _no_database)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse(error.body, error.status, headers)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    reasons = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return _problem(request, Invalid(f"The request cannot be used: {reasons}", "bad_request"))


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _problem(request, NotFound(f"There is nothing at {request.url.path}. /docs lists what there is.", "unknown_path"))
    body = {"error": {"message": str(error.detail), "type": Problem.type, "code": f"http_{error.status_code}"}}
    return JSONResponse(body, error.status_code, error.headers)


def _unstorable(request: Request, _: Exception) -> JSONResponse:
    return _problem(
        request, Invalid("The request holds what the database cannot: a NUL character, or too long a text.", "bad_request")
    )


def _no_database(request: Request, error: Exception) -> JSONResponse:
    log.error("the database does not answer: %s", getattr(error, "orig", error))
    return _problem(request, Unavailable("The database does not answer. Try again; `stillroom doctor` says more.", "no_database"))


def _unexpected(_: Request, error: Exception) -> JSONResponse:  # Starlette logs it, with its traceback
    message = f"Something went wrong here ({type(error).__name__}); it is in the log."
    return JSONResponse({"error": {"message": message, "type": "server_error", "code": "internal"}}, 500)
