"""How everything is, at a glance: processes, vLLM, the spool, the tasks."""

from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from admin import home, tasks
from admin.home import RoomProcess, Spool
from admin.settings import AdminSettings
from admin.tasks import TaskLine
from store.columns import now
from store.states import EngineStatus
from store.tables import Engine


class EngineLine(BaseModel):
    """A vLLM server as it last said it was."""

    id: str
    status: EngineStatus
    base_model: str
    loaded: list[str] = Field(description="Adapters it has.")
    restarts: int
    detail: str
    seconds_ago: float = Field(description="When it said so.")


class Status(BaseModel):
    """What `stillroom status` shows."""

    home: str
    up: int | None = Field(description="The process id of `stillroom up` on this home, if it runs.")
    rooms: list[RoomProcess] = Field(description="The rooms it runs; rooms run by hand or elsewhere are not known here.")
    engines: list[EngineLine]
    spool: Spool
    tasks: list[TaskLine] = Field(description="The busiest.")
    more_tasks: bool


def collect(session: Session, settings: AdminSettings, *, limit: int = 50) -> Status:
    """Look at everything once."""
    up = home.running(settings.home_path)
    listed, more = tasks.busiest(session, limit)
    return Status(
        home=str(settings.home_path),
        up=up.pid if up else None,
        rooms=home.rooms(up) if up else [],
        engines=[_engine(row) for row in session.exec(select(Engine).order_by(col(Engine.id)))],
        spool=home.spool(settings.home_path),
        tasks=listed,
        more_tasks=more,
    )


def _engine(row: Engine) -> EngineLine:
    return EngineLine(
        id=row.id,
        status=row.status,
        base_model=row.base_model,
        loaded=row.loaded,
        restarts=row.restarts,
        detail=row.detail or row.status.sentence,
        seconds_ago=round((now() - row.heartbeat_at).total_seconds(), 1),
    )
