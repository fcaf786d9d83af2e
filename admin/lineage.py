"""Where an adapter comes from, each hash checked; and which adapters learned from a capture."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field
from sqlmodel import Session

from admin import adapters, reviews
from admin.adapters import AdapterLine
from admin.problems import NotFound, not_installed
from store.session import Database
from store.settings import StoreSettings
from store.tables import Adapter


class HopLine(BaseModel, from_attributes=True):
    """One hop on the way back from an adapter to its captures."""

    name: str
    checked: int = Field(description="Things that were looked at.")
    failures: int = Field(description="Those that are not what they were.")
    broken: list[str] = Field(description="The first of them.")
    notes: list[str] = Field(description="What cannot be checked, and why.")


class Lineage(BaseModel):
    """An adapter's way back, all of it."""

    adapter_id: str
    whole: bool = Field(description="Whether all that could be checked is what it was.")
    hops: list[HopLine]


def verify(db: Database, adapter_id: str, settings: StoreSettings, tell: Callable[[HopLine], None] = lambda _: None) -> Lineage:
    """Check every hash from an adapter back to its captures; `tell` hears of each hop at once. Raises NotFound."""
    lineage = _distill()
    try:
        hops = lineage.verify(db, adapter_id, settings, lambda hop: tell(HopLine.model_validate(hop)))
    except lineage.NoAdapter as none:
        raise NotFound(f"There is no adapter {adapter_id!r}. `stillroom adapters` lists them.", "unknown_adapter") from none
    lines = [HopLine.model_validate(hop) for hop in hops]
    return Lineage(adapter_id=adapter_id, whole=not any(line.failures for line in lines), hops=lines)


def learners(session: Session, capture_id: str) -> list[AdapterLine]:
    """The adapters that learned from, or were judged on, a capture; a pair's id finds its capture. Raises NotFound."""
    lineage = _distill()
    return adapters.lines(session, lineage.learners(session, [reviews.find(session, capture_id).id]))


def card(session: Session, adapter_id: str, settings: StoreSettings) -> str:
    """An adapter's model card as things are now: Markdown. Raises NotFound."""
    from distill import card

    adapter = session.get(Adapter, adapter_id)
    if adapter is None:
        raise NotFound(f"There is no adapter {adapter_id!r}. `stillroom adapters` lists them.", "unknown_adapter")
    return card.render(card.collect(session, adapter, settings))


def _distill() -> Any:
    """`distill.lineage`, which needs what distill needs. Raises Unavailable."""
    try:
        from distill import lineage
    except ModuleNotFoundError as missing:
        raise not_installed(f"distill ({missing.name})") from missing
    return lineage
