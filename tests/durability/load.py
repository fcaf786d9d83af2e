"""Clients on the harness's event loop that ask at a steady rate, connect again when their proxy dies, and write all down."""

import asyncio
import contextlib
import random
import time
from typing import Any

import orjson

from tests.durability.ledger import Ledger

DONE = b"data: [DONE]\n\n"
SYSTEM = {"role": "system", "content": "Answer as the teacher does."}
PATIENCE = 30.0  # seconds for one answer


class Load:
    """`clients` connections that together send `rate` requests a second, half of them streams, as far as they are answered."""

    def __init__(
        self, port: int, *, rate: float = 150.0, clients: int = 32, leave: float = 0.0, at_once: bool = False,
        ledger: Ledger | None = None,
    ) -> None:  # fmt: skip
        """`leave`: the share of requests that the client breaks off. `at_once`: all begin together. `ledger`: to go on with."""
        self.ledger = ledger or Ledger()
        self.in_flight = 0
        self._port = port
        self._cycle = clients / rate
        self._leave = leave
        self._at_once = at_once
        self._halt = False
        self._began = time.monotonic()
        self._tasks = [asyncio.create_task(self._run()) for _ in range(clients)]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Acknowledged answers a second, since the start."""
        return self.ledger.acknowledged / self.seconds

    async def acknowledged(self, count: int, seconds: float = 60.0) -> None:
        """Wait until so many more are acknowledged."""
        want = self.ledger.acknowledged + count
        async with asyncio.timeout(seconds):
            while self.ledger.acknowledged < want:
                await asyncio.sleep(0.02)

    async def stop(self) -> Ledger:
        """Let what is open end."""
        self._halt = True
        await asyncio.gather(*self._tasks)
        return self.ledger

    async def cancel(self) -> None:
        """Stop now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        wires: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        await asyncio.sleep(0.0 if self._at_once else random.random() * self._cycle)
        while not self._halt:
            began = time.monotonic()
            try:
                if not wires:
                    wires.append(await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20))
                self.in_flight += 1
                try:
                    async with asyncio.timeout(PATIENCE):
                        keep = await self._exchange(*wires[0])
                finally:
                    self.in_flight -= 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.ledger.broken += 1
                self.ledger.breaks[type(error).__name__] += 1
                keep = False
                await asyncio.sleep(0.1)
            if not keep and wires:
                _, writer = wires.pop()
                writer.transport.abort()
            await asyncio.sleep(max(0.0, self._cycle * random.uniform(0.7, 1.3) - (time.monotonic() - began)))
        for _, writer in wires:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request on a connection; True if another may follow on it."""
        entry, body = self.ledger.open(random.random() < 0.5, self._request())
        leave_after = random.randrange(4) if random.random() < self._leave else None
        entry.sent_at = time.monotonic()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: proxy\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        if leave_after == 0:
            await asyncio.sleep(random.random() * 0.02)
            entry.left = True
            return False
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        entry.id, entry.status = named.get("x-stillroom-id"), int(first.split(" ")[1])
        async for part in _body(reader, named):
            entry.first_at = entry.first_at or time.monotonic()
            entry.received += part
            if entry.streamed and entry.received.endswith(DONE):
                self.ledger.acknowledge(entry)
            if leave_after is not None and not entry.acknowledged:
                leave_after -= 1
                if leave_after <= 0:
                    entry.left = True
                    return False
        if entry.status >= 400:
            self.ledger.errors[f"{entry.status} {orjson.loads(entry.received)['error']['code']}"] += 1
        self.ledger.acknowledge(entry)
        return named.get("connection") != "close"

    def _request(self) -> dict[str, Any]:
        size = 20_000 if random.random() < 0.01 else 200
        asked = {"role": "user", "content": "q" * random.randrange(1, 2 * size)}
        return {"model": "big-1", "messages": [SYSTEM, asked]}


async def _body(reader: asyncio.StreamReader, named: dict[str, str]) -> Any:
    """The parts of an answer's body. Raises IncompleteReadError if it breaks off."""
    if "content-length" in named:
        left = int(named["content-length"])
        while left:
            part = await reader.read(min(left, 65536))
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(part)
            yield part
        return
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        part = await reader.readexactly(size + 2)
        if not size:
            return
        yield part[:-2]
