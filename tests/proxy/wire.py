"""HTTP by hand: a client's connection on which a test sends any bytes, and reads answers one after the other."""

import socket
import time
from dataclasses import dataclass

import httpx
import orjson


@dataclass
class Said:
    """One answer. `whole` is false where the connection ended before it did."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def code(self) -> str:
        return str(orjson.loads(self.body)["error"]["code"])


class Wire:
    """`with Wire(proxy.url) as wire: wire.send(...); wire.answer()`."""

    def __init__(self, url: str, seconds: float = 10.0) -> None:
        parsed = httpx.URL(url)
        self.socket = socket.create_connection((parsed.host, parsed.port), timeout=seconds)
        self._buffer = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> "Wire":
        self.socket.sendall(data)
        return self

    def post(self, body: bytes, path: str = "/v1/chat/completions", *headers: str) -> "Wire":
        return self.send(post(body, path, *headers))

    def answer(self, method: str = "POST") -> Said:
        """The next answer, interim ones (1xx) among them; framed as RFC 9112 says."""
        head = self._until(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        assert line.startswith("HTTP/1.1 "), head
        status = int(line.split(" ")[1])
        headers = [(key.lower(), value.strip()) for key, _, value in (each.partition(":") for each in lines if each)]
        said = Said(status, headers, b"", True)
        if method == "HEAD" or status < 200 or status in (204, 304):
            return said
        try:
            if said.header("transfer-encoding") == "chunked":
                while size := int(self._until(b"\r\n"), 16):
                    said.body += self._take(size)
                    assert self._take(2) == b"\r\n"
                assert self._until(b"\r\n") == b"\r\n"
            elif (length := said.header("content-length")) is not None:
                said.body = self._take(int(length))
            else:
                while True:
                    said.body += self._take(1)
        except EOFError:
            said.whole = not {"transfer-encoding", "content-length"} & {key for key, _ in headers}
            said.body, self._buffer = said.body + self._buffer, b""
        return said

    def broken(self) -> bool:
        """Whether the connection ends before an answer does."""
        try:
            return not self.answer().whole
        except (EOFError, ConnectionError):
            return True

    def peek(self) -> bytes:
        """What has come and is not taken; waits for more of it."""
        self._read()
        return self._buffer

    def rest(self) -> bytes:
        """All that comes until the other side closes."""
        while part := self.socket.recv(65536):
            self._buffer += part
        return self._buffer

    def closed(self, seconds: float = 5.0) -> bool:
        """Whether the other side closes within so long, and says nothing before."""
        self.socket.settimeout(seconds)
        try:
            return not self._buffer and self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._read()
        found, _, self._buffer = self._buffer.partition(end)
        return found + end

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._read()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _read(self) -> None:
        part = self.socket.recv(65536)
        if not part:
            raise EOFError("the connection ended")
        self._buffer += part


def post(body: bytes, path: str = "/v1/chat/completions", *headers: str) -> bytes:
    """A request, with its length unless a header frames it otherwise."""
    framed = any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers)
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, *([] if framed else [f"Content-Length: {len(body)}"])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1")


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def soon(seconds: float) -> "Deadline":
    return Deadline(seconds)


class Deadline:
    """`with soon(1.0):` what is done there is done within so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        took = time.monotonic() - self._started
        assert kind is not None or took < self._seconds, f"took {took:.2f} s"
