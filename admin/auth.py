"""Bearer tokens of the admin API. A token is shown once, when it is made; only its SHA-256 is kept."""

import hashlib
import secrets
from datetime import datetime

from pydantic import BaseModel
from sqlmodel import Session, col, select

from admin.problems import Conflict, Invalid, NotFound, Unauthorized
from store import audit
from store.tables import AdminToken

PREFIX = "stillroom-admin-"
HOW = "Make one with `stillroom token new --label NAME` on the machine stillroom runs on; send it as `Authorization: Bearer TOKEN`."


class TokenLine(BaseModel):
    """What is known of a token: not the token."""

    label: str
    created_at: datetime


class NewToken(BaseModel):
    """A token, the one time that it is shown."""

    label: str
    token: str


def make(session: Session, label: str, by: str) -> str:
    """A new token: 32 random bytes behind a prefix. Raises Invalid for a bad label, Conflict for one in use."""
    if not 1 <= len(label) <= 100 or not label.isprintable():
        raise Invalid("A token's label is 1 to 100 printable characters: who or what will use it.", "bad_label")
    if session.exec(select(AdminToken.sha256).where(AdminToken.label == label)).first() is not None:
        raise Conflict(f"There is a token labelled {label!r} already: take another label, or revoke that one.", "label_taken")
    token = PREFIX + secrets.token_urlsafe(32)
    session.add(AdminToken(sha256=_digest(token), label=label))
    audit.record(session, by, "token made", label)
    return token


def make_first(session: Session, by: str) -> str | None:
    """The first start's token; None if there is one already."""
    known = session.exec(select(AdminToken.sha256).limit(1)).first()
    return None if known is not None else make(session, "first start", by)


def check(session: Session, token: str | None) -> str:
    """The label of a token. Raises Unauthorized. What is compared is a hash, by the database's index: its timing tells nothing."""
    if not token:
        raise Unauthorized(f"The admin API needs a token. {HOW}", "no_token")
    known = session.get(AdminToken, _digest(token))
    if known is None:
        raise Unauthorized(f"This token is not known, or was revoked. {HOW}", "unknown_token")
    return known.label


def tokens(session: Session) -> list[TokenLine]:
    """All tokens that open the API, oldest first."""
    rows = session.exec(select(AdminToken).order_by(col(AdminToken.created_at), col(AdminToken.label)))
    return [TokenLine(label=row.label, created_at=row.created_at) for row in rows]


def revoke(session: Session, label: str, by: str) -> TokenLine:
    """Close the API to a token, from its next request on; returns what it was. Raises NotFound."""
    token = session.exec(select(AdminToken).where(AdminToken.label == label)).first()
    if token is None:
        labels = ", ".join(repr(each.label) for each in tokens(session)) or "none"
        raise NotFound(f"There is no token labelled {label!r}. There are: {labels}.", "unknown_token")
    session.delete(token)
    session.flush()
    audit.record(session, by, "token revoked", label)
    return TokenLine(label=token.label, created_at=token.created_at)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
