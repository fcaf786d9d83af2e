"""/api/keys: make, look, change, revoke."""

from fastapi import APIRouter

from admin import keys
from admin.api.needs import After, Caller, Limit, Reads, Writes
from admin.pages import Page

router = APIRouter(tags=["keys"])


@router.get("/keys", summary="List keys")
def list_keys(session: Reads, after: After = None, limit: Limit = 50) -> Page[keys.KeyLine]:
    return keys.listing(session, after=after, limit=limit)


@router.post("/keys", status_code=201, summary="Make a key; it is in this answer only")
def make(session: Writes, by: Caller, body: keys.Wanted) -> keys.NewKey:
    return keys.make(session, body, by=by)


@router.get("/keys/{key}", summary="One key, by label or id")
def get_key(session: Reads, key: str) -> keys.KeyLine:
    return keys.one(session, key)


@router.patch("/keys/{key}", summary="Change its label, tasks, budget, rate limit or expiry; null takes a limit away")
def patch_key(session: Writes, by: Caller, key: str, body: keys.Changes) -> keys.KeyLine:
    return keys.change(session, key, body, by=by)


@router.post("/keys/{key}/revoke", summary="Close the proxies to it for good, within about a second")
def revoke(session: Writes, by: Caller, key: str) -> keys.KeyLine:
    return keys.revoke(session, key, by=by)
