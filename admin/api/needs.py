"""What endpoints need: a session, and who is asking."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, BaseModel, Field
from sqlmodel import Session

from admin import auth, tasks
from admin.pages import LIMIT
from store.session import Database

_bearer = HTTPBearer(auto_error=False, description="An admin token: shown at a first start on a terminal; `stillroom token new`.")


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str


class ErrorBody(BaseModel):
    """Every error has this shape."""

    error: ErrorDetail


def database(request: Request) -> Database:
    found: Database = request.app.state.db
    return found


def reading(db: Annotated[Database, Depends(database)]) -> Iterator[Session]:
    with db.read() as session:
        yield session


def writing(db: Annotated[Database, Depends(database)]) -> Iterator[Session]:
    with db.begin() as session:
        yield session


def caller(
    db: Annotated[Database, Depends(database)], given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> str:
    """Who is asking, for the audit log. Raises Unauthorized."""
    with db.read() as session:
        return f"api: {auth.check(session, given.credentials if given else None)}"[:100]


Db = Annotated[Database, Depends(database)]
# scope: what was written is committed before the answer is sent, so that a 200 is never about nothing.
Reads = Annotated[Session, Depends(reading, scope="function")]
Writes = Annotated[Session, Depends(writing, scope="function")]
Caller = Annotated[str, Depends(caller)]

After = Annotated[str | None, Query(description="Go on after the row with this id.")]
Limit = Annotated[int, Query(ge=1, le=LIMIT, description="Rows of a page.")]
TaskFilter = Annotated[str | None, Query(alias="task", description="A task's name or id.")]


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


Time = Annotated[datetime, AfterValidator(_aware), Field(description="ISO 8601; UTC where no zone is given.")]


def task_id(session: Session, name_or_id: str | None) -> str | None:
    """The id of the task that a filter names. Raises NotFound."""
    return tasks.find(session, name_or_id).id if name_or_id else None
