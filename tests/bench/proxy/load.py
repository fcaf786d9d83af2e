"""Load generators, each one JSON line: `python -m tests.bench.proxy.load rate|streams --url URL ...`.

rate      requests at a fixed rate, Poisson gaps, driven by the clock: a proxy that stalls is charged for all that was due
streams   so many streams open at once, each begun anew as it ends; a chunk's lateness is from the mock's write to our read
"""

import argparse
import asyncio
import gc
import json
import random
import re
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop

from tests.bench.proxy import procstat

STAMP = re.compile(rb"@(\d{8,20})@")
TEXT = (
    "You are a careful assistant. Read the conversation below and answer the last question in a few short paragraphs, "
    "naming the facts that you rely on and the ones that you could not check. "
)
HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 2.0.0",
    "Authorization": "Bearer sk-stillroom-mock-0123456789abcdef0123456789abc",  # stillroom knows it as a key of its own
    "X-Stainless-Lang": "python",
    "X-Stainless-Runtime": "CPython",
}


def chat_body(model: str, *, stream: bool, size: int = 2048) -> bytes:
    """A chat completion request of about `size` bytes."""
    system = {"role": "system", "content": "You are a helpful assistant."}
    user = {"role": "user", "content": ""}
    body: dict[str, Any] = {"model": model, "messages": [system, user], "temperature": 0.7, "max_tokens": 512}
    if stream:
        body["stream"] = True
    missing = max(0, size - len(json.dumps(body)))
    user["content"] = (TEXT * (missing // len(TEXT) + 1))[:missing]
    return json.dumps(body).encode()


def request(url: str, body: bytes) -> tuple[str, int, bytes]:
    """Host, port, and the bytes of a POST."""
    parsed = urlsplit(url)
    host, port = parsed.hostname or "127.0.0.1", parsed.port or 80
    headers = {"Host": f"{host}:{port}", **HEADERS, "Content-Length": str(len(body))}
    head = f"POST {parsed.path or '/'} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return host, port, head.encode() + b"\r\n" + body


def summary(nanoseconds: list[int]) -> dict[str, float | None]:
    """Percentiles in microseconds."""
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    at = {"p50_us": 0.5, "p99_us": 0.99, "max_us": 1.0}
    return {name: ordered[min(last, int(q * len(ordered)))] / 1e3 if ordered else None for name, q in at.items()}


class Whole(asyncio.Protocol):
    """A connection that asks for whole answers."""

    def __init__(self, load: "Rate") -> None:
        self._load = load
        self.transport: Any = None
        self.asked = 0
        self._buffer = b""
        self._length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self) -> None:
        self._buffer, self._length = b"", 0
        self.asked = time.monotonic_ns()
        self.transport.write(self._load.payload)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._buffer += data
        if not self._length:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = re.search(rb"(?i)content-length: *(\d+)", self._buffer[:end])
            self._length = end + 4 + int(length[1]) if length else -1
        chunked = self._length < 0 and self._buffer.endswith(b"\r\n0\r\n\r\n")
        if chunked or 0 < self._length <= len(self._buffer):
            self._load.done(self, now - self.asked, ok=self._buffer[9:12] == b"200")
            self.asked = 0

    def connection_lost(self, _error: Exception | None) -> None:
        self._load.lost(self)


class Rate:
    """Requests at a fixed rate."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._host, self._port, self.payload = request(options.url, chat_body(options.model, stream=False))
        self._idle: list[Whole] = []
        self._latency: list[int] = []
        self._recording = False
        self._open = self._sent = self._failed = 0

    async def run(self) -> dict[str, Any]:
        for recording, seconds in ((False, 1.0), (True, self._options.seconds)):
            self._recording, self._sent, self._failed = recording, 0, 0
            due = started = time.monotonic()
            while due < started + seconds:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                asyncio.ensure_future(self._fire())  # noqa: RUF006 - counted in `_open`
                due += random.expovariate(self._options.rate)
        deadline = time.monotonic() + 5
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return {**summary(self._latency), "sent": self._sent, "failed": self._failed + self._open}

    def done(self, connection: Whole, nanoseconds: int, *, ok: bool) -> None:
        self._open -= 1
        self._failed += not ok
        if ok and self._recording:
            self._latency.append(nanoseconds)
        self._idle.append(connection)

    def lost(self, connection: Whole) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        elif connection.asked:
            self._open -= 1
            self._failed += 1

    async def _fire(self) -> None:
        self._sent += 1
        self._open += 1
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                connection.ask()
                return
        try:
            _, connection = await asyncio.get_running_loop().create_connection(lambda: Whole(self), self._host, self._port)
            connection.ask()
        except OSError:
            self._open -= 1
            self._failed += 1


class Stream(asyncio.Protocol):
    """A connection that asks for streams."""

    def __init__(self, load: "Streams") -> None:
        self._load = load
        self.transport: Any = None
        self._tail = b""
        self.chunks = 0
        self._ended: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self) -> "asyncio.Future[bool]":
        self._tail, self.chunks = b"", 0
        self._ended = asyncio.get_running_loop().create_future()
        self.transport.write(self._load.payload)
        return self._ended

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._tail + data
        end = 0
        for stamp in STAMP.finditer(data):
            self.chunks += 1
            end = stamp.end()
            if self._load.recording:
                self._load.lateness.append(now - int(stamp[1]))
        self._tail = data[max(end, len(data) - 64) :]
        if data.endswith(b"0\r\n\r\n") and self._ended is not None and not self._ended.done():
            self._ended.set_result(True)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(False)


class Streams:
    """Many streams at once, out of phase."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        model = f"{options.model}-n{options.chunks}-d{options.delay}"
        self._host, self._port, self.payload = request(options.url, chat_body(model, stream=True))
        self.lateness: list[int] = []
        self.recording = False
        self._stop = False
        self._short = self._failed = 0

    async def run(self) -> dict[str, Any]:
        options = self._options
        length = max(0.5, options.chunks * options.delay / 1000)
        tasks = [asyncio.ensure_future(self._one(length * i / options.streams)) for i in range(options.streams)]
        await asyncio.sleep(length + 1)
        cpu, began = procstat.cpu_seconds(options.pid), time.monotonic()
        self.recording = True
        await asyncio.sleep(options.seconds)
        self.recording, seconds = False, time.monotonic() - began
        cpu, memory = procstat.cpu_seconds(options.pid) - cpu, procstat.resident_mib(options.pid)
        self._stop = True
        _, stuck = await asyncio.wait(tasks, timeout=length + 5)
        for task in stuck:
            task.cancel()
        chunks = len(self.lateness)
        return {
            **summary(self.lateness), "chunks_per_second": chunks / seconds, "resident_mib": memory,
            "cpu_us_per_chunk": cpu / chunks * 1e6 if chunks and options.pid else None,
            "short": self._short, "failed": self._failed + len(stuck),
        }  # fmt: skip

    async def _one(self, delay: float) -> None:
        await asyncio.sleep(delay)
        connection: Stream | None = None
        while not self._stop:
            if connection is None or connection.transport.is_closing():
                try:
                    made = await asyncio.get_running_loop().create_connection(lambda: Stream(self), self._host, self._port)
                except OSError:
                    self._failed += 1
                    await asyncio.sleep(0.2)
                    continue
                connection = made[1]
            kept = await connection.ask()
            if connection.chunks != self._options.chunks and not self._stop:
                self._short += 1
                await asyncio.sleep(0.1)
            connection = connection if kept else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("rate", "streams"))
    parser.add_argument("--url", required=True)
    parser.add_argument("--pid", type=int, default=0, help="root of the process tree whose CPU and memory count")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--delay", type=int, default=20, help="milliseconds between two chunks")
    options = parser.parse_args()
    gc.disable()
    load = Rate(options) if options.kind == "rate" else Streams(options)
    print(json.dumps(uvloop.run(load.run())))


if __name__ == "__main__":
    main()
