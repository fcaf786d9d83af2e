"""All of /v1 that stillroom does not own: to the teacher and back, byte for byte, as it comes, not captured."""

import logging
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

from proxy import request as requests
from proxy.client import Client
from proxy.errors import UpstreamError
from proxy.headers import Headers, to_client
from proxy.metrics import Counters
from proxy.teachers import HEADER, Teachers
from proxy.upstream import Answer
from proxy.websocket import Relay

log = logging.getLogger("stillroom.proxy")

_NAMED = 25_000_000  # bytes: largest body in which a model is looked for; openai.com takes no larger file either
_SMALL = 65_536  # bytes: read whole, so that it can be sent again on a fresh connection


async def handle(client: Client, teachers: Teachers, counters: Counters, relay: Relay | None = None) -> None:
    """Answer one request; with a `relay` one that asks for a WebSocket. Raises Refusal where there is no answer to pass on."""
    model = _model(client.query) if relay is not None else None
    teacher = teachers.of(model, client.header(HEADER))
    try:
        body = await _body(client, whole=teacher.wants_model(client) and relay is None)
        if isinstance(body, bytes) and teacher.wants_model(client):
            model = model or requests.model(body)
        answer = await teacher.ask(client, body, model, own_key=client.key is not None, upgrades=relay is not None)
    except UpstreamError as error:
        raise teacher.refusal(error) from error
    client.watch()
    counters.passed(client.raw_path.decode("latin-1"), answer.status)
    added = [(b"x-stillroom-id", client.id.encode()), (b"x-stillroom-served-by", b"teacher")]
    try:
        if relay is not None and answer.status == 101:
            await _upgrade(client, answer, relay, added)
            return
        client.start(answer.status, to_client(answer.headers, added))
        answer.sink = client.push
        async for chunk in answer:
            await client.send(chunk)
        client.finish()
    except UpstreamError as error:  # not finished: the client's connection is broken too
        log.warning("%s %r: the teacher's answer broke off: %s", client.method, client.raw_path, error)
    finally:
        await answer.close()


async def _upgrade(client: Client, answer: Answer, relay: Relay, added: Headers) -> None:
    client.keep_alive = True  # for its head to say nothing of closing
    upgrade = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
    client.start(101, [*to_client(answer.headers, added), *upgrade])
    answer.hand_over(relay)  # type: ignore[attr-defined]
    try:
        await relay.over
    finally:
        client.cut()


def _model(query: bytes) -> str | None:
    """Realtime names its model in the query."""
    return parse_qs(query.decode("latin-1")).get("model", [None])[0]


async def _body(client: Client, whole: bool) -> bytes | AsyncIterator[bytes]:
    if whole:
        return await client.body(_NAMED)
    length = client.length
    if length is None and client.header(b"transfer-encoding") is not None:
        return client.stream()
    if int(length or 0) > _SMALL:
        return client.stream()
    body = await client.body(_SMALL)
    client.watch()
    return body
