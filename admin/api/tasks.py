"""/api/tasks: look, name, pause, decide, train, promote, roll back, export; /api/import."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from admin import adapters, exporting, importing, tasks
from admin.api.needs import After, Caller, Db, Limit, Reads, Writes
from admin.pages import Page
from store.states import Split, TaskStatus

router = APIRouter(tags=["tasks"])
IN_MEMORY = 1_000_000  # bytes of an upload; the rest of it goes to a temporary file


class Rename(BaseModel):
    name: str


class Merge(BaseModel):
    """Tasks by name or id."""

    tasks: list[str] = Field(description="Those that are merged away.", min_length=1, max_length=1000)
    why: str = Field("a person decided", max_length=1000)


class Divide(BaseModel):
    """What makes the new task, and its name."""

    containing: str = Field(description="A text that its requests have: system message or first question.", max_length=10_000)
    name: str


class Why(BaseModel):
    """The reason, for the audit log."""

    why: str = Field("a person decided", max_length=1000)


class Promote(Why):
    holdback: float | None = Field(None, description="The share that the teacher keeps. Default: the task's policy.")


@router.get("/tasks", summary="List tasks")
def list_tasks(session: Reads, after: After = None, limit: Limit = 50) -> Page[tasks.TaskLine]:
    return tasks.listing(session, after=after, limit=limit)


@router.get("/tasks/{task}", summary="One task, by name or id")
def get_task(session: Reads, task: str) -> tasks.TaskDetail:
    return tasks.one(session, task)


@router.post("/tasks/{task}/rename", summary="Give it another name")
def rename(session: Writes, by: Caller, task: str, body: Rename) -> tasks.TaskDetail:
    return tasks.one(session, tasks.rename(session, task, body.name, by=by).id)


@router.post("/tasks/{task}/merge", summary="Merge others into it: their requests and captures are its own from now on")
def merge(session: Writes, by: Caller, task: str, body: Merge) -> tasks.TaskDetail:
    return tasks.one(session, tasks.merge(session, task, body.tasks, by=by, why=body.why).id)


@router.post("/tasks/{task}/split", summary="Make a task of those of its requests that have a text")
def split(session: Writes, by: Caller, task: str, body: Divide) -> tasks.TaskDetail:
    return tasks.one(session, tasks.split(session, task, body.containing, body.name, by=by).id)


@router.patch("/tasks/{task}/policy", summary="Change its policy, key by key; null takes a key back to its default")
def patch_policy(session: Writes, by: Caller, task: str, body: dict[str, Any]) -> tasks.TaskDetail:
    return tasks.one(session, tasks.decide(session, task, body, by=by).id)


@router.post("/tasks/{task}/pause", summary="No new training")
def pause(session: Writes, by: Caller, task: str) -> tasks.TaskDetail:
    return tasks.one(session, tasks.set_status(session, task, TaskStatus.PAUSED, by=by).id)


@router.post("/tasks/{task}/resume", summary="Capture, train and serve again")
def resume(session: Writes, by: Caller, task: str) -> tasks.TaskDetail:
    return tasks.one(session, tasks.set_status(session, task, TaskStatus.ACTIVE, by=by).id)


@router.post("/tasks/{task}/ignore", summary="Leave it to the teacher for good")
def ignore(session: Writes, by: Caller, task: str) -> tasks.TaskDetail:
    return tasks.one(session, tasks.set_status(session, task, TaskStatus.IGNORED, by=by).id)


@router.post("/tasks/{task}/train", tags=["decisions"], status_code=202, summary="Train now")
def train(session: Writes, by: Caller, task: str) -> tasks.TaskDetail:
    return tasks.one(session, adapters.train(session, task, by=by).id)


@router.post("/tasks/{task}/promote", tags=["decisions"], summary="Let its latest accepted adapter answer")
def promote(session: Writes, by: Caller, task: str, body: Promote | None = None) -> adapters.Promotion:
    body = body or Promote()
    return adapters.promote(session, task, by=by, why=body.why, holdback=body.holdback)


@router.post("/tasks/{task}/rollback", tags=["decisions"], summary="Give it back to the teacher")
def rollback(session: Writes, by: Caller, task: str, body: Why | None = None) -> tasks.TaskDetail:
    return tasks.one(session, adapters.rollback(session, task, by=by, why=(body or Why()).why).id)


@router.get(
    "/tasks/{task}/export",
    tags=["transfer"],
    summary="Its pairs as OpenAI fine-tuning JSONL",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {}}}},
)
def export(db: Db, by: Caller, task: str, split: Split | None = None) -> StreamingResponse:
    with db.begin() as session:
        found = tasks.find(session, task)
        exporting.note(session, found.id, None, by=by)
    name = f'attachment; filename="{found.id}.jsonl"'
    lines: Iterator[bytes] = exporting.lines(db, found.id, split)
    return StreamingResponse(lines, media_type="application/jsonl", headers={"content-disposition": name})


async def _body(request: Request) -> AsyncIterator[IO[bytes]]:
    """The request's body as a file, whole before anything of it is imported."""
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as file:
        async for piece in request.stream():
            file.write(piece)
        file.seek(0)
        yield file


@router.post(
    "/import",
    tags=["transfer"],
    summary="Import recorded exchanges: JSONL, plain or gzip, as the body",
    openapi_extra={"requestBody": {"required": True, "content": {"application/jsonl": {"schema": {"type": "string"}}}}},
)
def import_lines(
    db: Db,
    by: Caller,
    file: Annotated[IO[bytes], Depends(_body)],
    name: Annotated[str, Query(description="What to call the source.")] = "upload",
    task: Annotated[str | None, Query(description="The task all lines belong to; else each line's own.")] = None,
    model: Annotated[str | None, Query(description="The teacher's model, for lines that name none.")] = None,
) -> importing.Report:
    return importing.load(db, file, source=name, task=task, model=model, by=by)
