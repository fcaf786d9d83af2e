"""The client to the teacher, on a real connection: framing, kept connections, pressure, time and what goes wrong."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from unittest.mock import Mock

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from proxy.base import Base
from proxy.errors import Broken, TimedOut, Unreachable, Unsendable
from proxy.http1 import Http1Answer, Pool
from proxy.upstream import Answer, Upstream
from tests.proxy import upstream as servers
from tests.proxy.upstream import Exchange, hang, json

Use = Callable[[Upstream, Base], Awaitable[None]]


@pytest.fixture
def server() -> Iterator[servers.Upstream]:
    server = servers.Upstream()
    yield server
    server.stop()


def use(server: servers.Upstream, what: Use, *, read_timeout: float = 5.0) -> None:
    async def run() -> None:
        client = Upstream(connect_timeout=2, read_timeout=read_timeout)
        try:
            await what(client, Base(server.url))
        finally:
            await client.close()

    uvloop.run(run())


async def whole(
    client: Upstream, base: Base, method: str = "POST", body: bytes | AsyncIterator[bytes] = b"{}"
) -> tuple[int, bytes]:
    answer = await client.open(method, base, b"/x", [(b"a", b"b")], body)
    return answer.status, b"".join([part async for part in answer])


async def take(answer: Answer, came: list[bytes]) -> None:
    async for part in answer:
        came.append(part)


def says(*parts: bytes, keep: bool = False, pause: float = 0.0) -> servers.Reply:
    async def reply(exchange: Exchange) -> bool:
        for part in parts:
            await exchange.write(part)
            await asyncio.sleep(pause)
        return keep

    return reply


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((LENGTH, b"12345"), b"12345"),
        ((LENGTH + b"1", b"2", b"345"), b"12345"),
        ((CHUNKED, b"5\r\n123", b"45\r\n0\r\n\r\n"), b"12345"),
        ((CHUNKED, b"5\r\n12345\r\n0\r\nTrailer: x\r\n\r\n"), b"12345"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n",), b"12345"),
        ((b"HTTP/1.1 200 OK\r\n\r\n", b"123", b"45"), b"12345"),
        ((b"HTTP/1.0 200 OK\r\n\r\n", b"12345"), b"12345"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH + b"12345"), b"12345"),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), b""),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), b""),
    ],
)
def test_an_answer_is_whole_however_it_is_framed_and_cut(
    server: servers.Upstream, parts: tuple[bytes, ...], expected: bytes
) -> None:
    server.reply = says(*parts, pause=0.005)

    async def what(client: Upstream, base: Base) -> None:
        status, body = await whole(client, base)
        assert status in (200, 204)
        assert body == expected

    use(server, what)


@pytest.mark.parametrize(
    "parts", [(LENGTH, b"123"), (CHUNKED, b"5\r\n123"), (CHUNKED, b"5\r\n12345\r\n"), (CHUNKED, b"5\r\n12345\r\nzz\r\n")]
)
def test_an_answer_that_ends_early_is_broken_after_what_came(server: servers.Upstream, parts: tuple[bytes, ...]) -> None:
    server.reply = says(*parts, pause=0.02)

    async def what(client: Upstream, base: Base) -> None:
        answer = await client.open("POST", base, b"/x", [], b"{}")
        came: list[bytes] = []
        with pytest.raises(Broken):
            await take(answer, came)
        assert b"".join(came) in (b"123", b"12345")

    use(server, what)


@pytest.mark.parametrize(
    "parts", [(b"SSH-2.0-OpenSSH\r\n",), (b"HTTP/1.1 2x0 OK\r\n\r\n",), (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300_000,)]
)
def test_what_is_no_answer_is_broken(server: servers.Upstream, parts: tuple[bytes, ...]) -> None:
    server.reply = says(*parts)

    async def what(client: Upstream, base: Base) -> None:
        with pytest.raises(Broken):
            await whole(client, base)

    use(server, what)


def test_connections_are_kept_and_used_again(server: servers.Upstream) -> None:
    async def what(client: Upstream, base: Base) -> None:
        for _ in range(3):
            await whole(client, base)
        await asyncio.gather(*(whole(client, base) for _ in range(4)))
        await asyncio.gather(*(whole(client, base) for _ in range(4)))

    use(server, what)
    assert [seen.connection for seen in server.seen[:3]] == [1, 1, 1]
    assert {seen.connection for seen in server.seen} == {1, 2, 3, 4}


def test_the_answer_to_head_has_no_body_whatever_its_headers_say(server: servers.Upstream) -> None:
    server.reply = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", keep=True)

    async def what(client: Upstream, base: Base) -> None:
        for _ in range(2):
            assert await whole(client, base, "HEAD", b"") == (200, b"")

    use(server, what, read_timeout=0.5)


def test_a_kept_connection_that_has_died_is_replaced_once(server: servers.Upstream) -> None:
    async def what(client: Upstream, base: Base) -> None:
        await whole(client, base)

        async def dies_once(exchange: Exchange) -> bool | None:
            return None if exchange.seen.connection == 1 else await json({})(exchange)

        server.reply = dies_once
        assert (await whole(client, base))[0] == 200
        assert [seen.connection for seen in server.seen] == [1, 1, 2]

        server.reply = servers.abort
        with pytest.raises(Broken):
            await whole(client, base)
        assert [seen.connection for seen in server.seen] == [1, 1, 2, 2, 3]

    use(server, what)


def test_nothing_is_sent_twice_once_an_answer_has_begun_or_where_the_body_streams(server: servers.Upstream) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"a"

    async def what(client: Upstream, base: Base) -> None:
        await whole(client, base)
        server.reply = says(b"HTTP/1.1 2")
        with pytest.raises(Broken):
            await whole(client, base)
        assert len(server.seen) == 2
        server.reply = json({})
        await whole(client, base)
        server.reply = servers.abort
        with pytest.raises(Broken):
            await whole(client, base, body=parts())
        assert len(server.seen) == 4

    use(server, what)


def test_silence_is_an_error_and_a_slow_answer_is_none(server: servers.Upstream) -> None:
    async def what(client: Upstream, base: Base) -> None:
        server.reply = says(CHUNKED, *[b"1\r\nx\r\n"] * 8, b"0\r\n\r\n", pause=0.1)
        assert (await whole(client, base))[1] == b"x" * 8
        server.reply = hang  # type: ignore[assignment]
        with pytest.raises(TimedOut):
            await whole(client, base)

    use(server, what, read_timeout=0.4)
    assert server.seen[1].left.wait(2)


def test_an_upstream_is_read_only_as_fast_as_its_answer_is_taken(server: servers.Upstream) -> None:
    written = 0

    async def flood(exchange: Exchange) -> bool:
        nonlocal written
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            await exchange.write(b"x" * 100_000)
            written += 100_000
        return True

    async def what(client: Upstream, base: Base) -> None:
        server.reply = flood
        answer = await client.open("POST", base, b"/x", [], b"{}")
        await asyncio.sleep(0.8)  # longer than the read timeout: waiting for the client is not the upstream's silence
        assert written < 20_000_000
        assert sum([len(part) async for part in answer]) == 100_000_000

    use(server, what, read_timeout=0.5)


def test_an_answer_that_is_not_wanted_any_more_costs_its_connection(server: servers.Upstream) -> None:
    async def what(client: Upstream, base: Base) -> None:
        server.reply = hang  # type: ignore[assignment]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.open("POST", base, b"/x", [], b"{}")
        server.reply = servers.stream(servers.events("a"), after="hang")
        answer = await client.open("POST", base, b"/x", [], b"{}")
        await answer.close()

    use(server, what)
    assert all(seen.left.wait(2) for seen in server.seen)


def test_an_answer_before_the_body_is_whole_ends_the_upload(server: servers.Upstream) -> None:
    sent = 0

    async def refuse(exchange: Exchange) -> bool:
        await exchange.write(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(0.5)
        return False

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield b"x" * 10_000
            await asyncio.sleep(0.001)

    async def what(client: Upstream, base: Base) -> None:
        server.reply = json({})
        await whole(client, base)
        server.early = refuse
        assert await whole(client, base, body=endless()) == (413, b"no")
        assert sent < 5_000
        server.early = None
        assert (await whole(client, base))[0] == 200

    use(server, what)
    assert [seen.connection for seen in server.seen] == [1, 1, 2]


def test_nobody_there_is_unreachable(server: servers.Upstream) -> None:
    server.stop()

    async def what(client: Upstream, base: Base) -> None:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
            await whole(client, base)
        with pytest.raises(Unreachable):
            await whole(client, Base("http://no-such-host.invalid"))
        with pytest.raises(Unreachable):
            await whole(client, Base("https://127.0.0.1:1"))

    use(server, what)


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\0b"])
def test_a_header_that_would_be_another_line_is_not_sent(server: servers.Upstream, value: bytes) -> None:
    async def what(client: Upstream, base: Base) -> None:
        with pytest.raises(Unsendable):
            await client.open("POST", base, b"/x", [(b"a", value)], b"{}")

    use(server, what)
    assert server.seen == []


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "both.pem").write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return folder / "both.pem"


def test_tls_is_spoken_and_a_certificate_that_nobody_trusts_is_refused(tmp_path: Path) -> None:
    path = certificate(tmp_path)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(path)
    server = servers.Upstream(ours)
    server.reply = json(b"x" * 300_000)
    head = b"POST /x HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 2\r\n\r\n"

    async def ask(pool: Pool) -> int:
        answer = await pool.ask(Base(server.url).origin, "the server", head, b"{}", chunked=False, bodiless=False)
        return sum([len(part) async for part in answer])

    async def run() -> None:
        trusting = Pool(connect_timeout=2, read_timeout=2, certificates=lambda: ssl.create_default_context(cafile=path))
        assert [await ask(trusting) for _ in range(3)] == [300_000] * 3
        await trusting.close()
        strict = Pool(connect_timeout=2, read_timeout=2, certificates=ssl.create_default_context)
        with pytest.raises(Unreachable, match="certificate"):
            await ask(strict)

    uvloop.run(run())
    server.stop()
    assert {seen.connection for seen in server.seen} == {1}


def test_what_a_sink_has_not_taken_is_walked_alone_and_what_came_behind_it_after_it():
    async def run() -> list[bytes]:
        answer = Http1Answer(Mock(), "teacher")
        offered: list[bytes] = []
        answer.sink = lambda part: bool(offered.append(part)) or part == b"taken"
        walked: list[bytes] = []

        async def walk() -> None:
            async for part in answer:
                walked.append(part)

        walking = asyncio.create_task(walk())
        await asyncio.sleep(0)
        for part in (b"taken", b"refused", b"behind", b"it"):  # the last two before the walker has had its turn
            answer.add(part)
            answer.wake()
        await asyncio.sleep(0)
        answer.ended()
        answer.wake()
        await walking
        assert offered == [b"taken", b"refused"]
        return walked

    assert asyncio.run(run()) == [b"refused", b"behindit"]
