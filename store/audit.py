"""The audit log: appended by whoever decides or acts, never changed."""

from typing import Any

from sqlmodel import Session

from store.tables import AuditEvent


def record(session: Session, actor: str, action: str, subject: str = "", detail: dict[str, Any] | None = None) -> None:
    """Append one event. `detail` must hold no secret."""
    session.add(AuditEvent(actor=actor, action=action, subject=subject, detail=detail or {}))
