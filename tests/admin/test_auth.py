"""Tokens: shown once, kept hashed, revoked at once."""

import hashlib

import pytest
from sqlmodel import select

from admin import auth
from admin.problems import Conflict, Invalid, NotFound, Unauthorized
from store.session import Database
from store.tables import AdminToken, AuditEvent


def test_a_token_opens_the_api_and_only_its_hash_is_kept(sqlite: Database) -> None:
    with sqlite.begin() as session:
        token = auth.make(session, "ci", by="me")
    with sqlite.read() as session:
        assert auth.check(session, token) == "ci"
        [row] = session.exec(select(AdminToken)).all()
        events = session.exec(select(AuditEvent)).all()
    assert token.startswith("stillroom-admin-")
    assert len(token) >= len("stillroom-admin-") + 43  # 32 bytes in base64
    assert row.sha256 == hashlib.sha256(token.encode()).hexdigest()
    assert token not in repr(row) + repr(events)


def test_no_two_tokens_are_alike(sqlite: Database) -> None:
    with sqlite.begin() as session:
        assert len({auth.make(session, f"{n}", by="me") for n in range(10)}) == 10


@pytest.mark.parametrize("token", [None, "", "stillroom-admin-wrong", "x" * 10_000])
def test_what_is_no_token_is_refused_with_the_way_to_get_one(sqlite: Database, token: str | None) -> None:
    with sqlite.read() as session, pytest.raises(Unauthorized, match="stillroom token new --label"):
        auth.check(session, token)


def test_the_first_token_is_made_once(sqlite: Database) -> None:
    with sqlite.begin() as session:
        assert auth.make_first(session, by="first start") is not None
        assert auth.make_first(session, by="first start") is None


def test_a_revoked_token_opens_nothing(sqlite: Database) -> None:
    with sqlite.begin() as session:
        token = auth.make(session, "ci", by="me")
        auth.revoke(session, "ci", by="me")
        with pytest.raises(Unauthorized, match="revoked"):
            auth.check(session, token)
        assert auth.tokens(session) == []


def test_labels_are_told_apart(sqlite: Database) -> None:
    with sqlite.begin() as session:
        auth.make(session, "ci", by="me")
        with pytest.raises(Conflict, match="'ci' already"):
            auth.make(session, "ci", by="me")
        with pytest.raises(NotFound, match="There are: 'ci'"):
            auth.revoke(session, "ic", by="me")
        with pytest.raises(Invalid, match="1 to 100"):
            auth.make(session, "", by="me")
