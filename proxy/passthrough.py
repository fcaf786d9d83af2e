"""All of /v1 that stillroom does not own: to the teacher and back, byte for byte, as it comes, not captured."""

import logging
from collections.abc import AsyncIterator

from proxy.client import Client
from proxy.errors import UpstreamError
from proxy.headers import to_client
from proxy.teacher import Teacher

log = logging.getLogger("stillroom.proxy")

_SMALL = 65_536  # bytes: read whole, so that it can be sent again on a fresh connection


async def handle(client: Client, teacher: Teacher) -> None:
    """Answer one request. Raises Refusal where there is no answer to pass on."""
    try:
        answer = await teacher.ask(client, await _body(client))
    except UpstreamError as error:
        raise teacher.refusal(error) from error
    client.watch()
    added = [(b"x-stillroom-id", client.id.encode()), (b"x-stillroom-served-by", b"teacher")]
    try:
        await client.start(answer.status, to_client(answer.headers, added))
        async for chunk in answer:
            await client.send(chunk)
        await client.finish()
    except UpstreamError as error:  # not finished: the server breaks the client's connection too
        log.warning("%s %r: the teacher's answer broke off: %s", client.method, client.raw_path, error)
    finally:
        await answer.close()


async def _body(client: Client) -> bytes | AsyncIterator[bytes]:
    length = client.header(b"content-length")
    if length is None and client.header(b"transfer-encoding") is not None:
        return client.stream()
    if int(length or 0) > _SMALL:
        return client.stream()
    body = await client.body(_SMALL)
    client.watch()
    return body
