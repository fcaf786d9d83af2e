"""/api/adapters/{adapter}/lineage and /card, /api/captures/{capture}/adapters, /api/erasures: where from, and whom to forget."""

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse
from pydantic import Field

from admin import erase as erasing
from admin import lineage
from admin.adapters import AdapterLine
from admin.api.needs import Caller, Db, Reads
from store.settings import StoreSettings

log = logging.getLogger("stillroom.admin")
router = APIRouter()


def _settings(request: Request) -> StoreSettings:
    found: StoreSettings = request.app.state.settings
    return found


Settings = Annotated[StoreSettings, Depends(_settings)]


class Erasure(erasing.Wanted):
    """Whom or what to forget, and why."""

    why: str = Field("", description="The reason, for the audit log.")
    take_back: bool = Field(False, description="Live adapters that learned from it stop answering now.")


@router.get("/adapters/{adapter_id}/lineage", tags=["adapters"], summary="Check every hash back to the captures")
def get_lineage(db: Db, settings: Settings, adapter_id: str) -> lineage.Lineage:
    return lineage.verify(db, adapter_id, settings)


@router.get("/adapters/{adapter_id}/card", tags=["adapters"], summary="Its model card", response_class=PlainTextResponse)
def get_card(session: Reads, settings: Settings, adapter_id: str) -> PlainTextResponse:
    return PlainTextResponse(lineage.card(session, adapter_id, settings), media_type="text/markdown")


@router.get("/captures/{capture_id}/adapters", tags=["captures"], summary="The adapters that learned from it")
def list_learners(session: Reads, capture_id: str) -> list[AdapterLine]:
    return lineage.learners(session, capture_id)


@router.post("/erasures", tags=["decisions"], summary="Forget a user, or captures; answers when it is done")
def erase(db: Db, settings: Settings, by: Caller, body: Erasure) -> erasing.Report:
    wanted = erasing.wanted(**body.model_dump(include={"user", "key", "captures"}))
    return erasing.erase(db, settings, wanted, by=by, why=body.why, take_back=body.take_back, say=log.info)
