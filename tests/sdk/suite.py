"""`python suite.py BASE_URL`, in the environment of openai-python: what goes well and what goes wrong with one base URL.

Prints {name: verdict} as JSON; a verdict is what a caller gets: a value, or the error's class, status, code and message.
"""

import asyncio
import hashlib
import io
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
from pydantic import BaseModel

MESSAGES: Any = [{"role": "user", "content": "Grüße 👋"}]
ASKS: Any = {"model": "gpt-x", "messages": MESSAGES}
WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}, "strict": True}
TOOLS: Any = [{"type": "function", "function": WEATHER}]
LARGE = "ab\r\n--\0ü".encode() * 400_000


class Ticket(BaseModel):
    team: str


class Suite:
    def __init__(self, url: str) -> None:
        given: Any = {"base_url": url, "api_key": "sk-test-key-1", "timeout": 20.0}
        self.client, self.later = openai.OpenAI(**given), openai.AsyncOpenAI(**given)
        self.verdicts: dict[str, Any] = {}

    def tell(self, name: str, call: Callable[[], Any]) -> None:
        try:
            self.verdicts[name] = {"value": call()}
        except Exception as error:  # noqa: BLE001 - whatever it is: it is the verdict
            told = {key: getattr(error, key, None) for key in ("status_code", "code", "request_id")}
            self.verdicts[name] = {"error": type(error).__name__, "says": str(error), **told}

    def both(self, name: str, call: Callable[[Any], Any]) -> None:
        """Asked by the synchronous and by the asynchronous client."""

        async def wait() -> Any:
            found: Awaitable[Any] = call(self.later)
            return _plain(await found)

        self.tell(name, lambda: _plain(call(self.client)))
        self.tell(f"{name}, async", lambda: loop.run_until_complete(wait()))

    def run(self) -> None:
        for status in (429, 500, 503, 409, 408):
            self.both(
                f"retried {status}",
                lambda c, m=f"flaky {status} 1": c.chat.completions.create(**ASKS, **mock(f"{m} {type(c).__name__}")),
            )
        self.both("retried twice", lambda c: c.chat.completions.create(**ASKS, **mock(f"flaky 429 2 {type(c).__name__}")))
        self.both("retried in vain", lambda c: c.chat.completions.create(**ASKS, **mock(f"flaky 429 9 {type(c).__name__}")))
        for status in (400, 401, 403, 404, 409, 422, 429, 500, 502, 529):
            self.both(f"error {status}", lambda c, m=f"error {status}": c.chat.completions.create(**ASKS, **mock(m)))
            self.both(f"error {status} elsewhere", lambda c, m=f"error {status}": c.models.list(**mock(m)))
        self.both("timeout", lambda c: c.with_options(max_retries=0).chat.completions.create(**ASKS, **mock("hang"), timeout=0.3))
        self.both("timeout elsewhere", lambda c: c.with_options(max_retries=1).models.list(**mock("hang"), timeout=0.3))
        self.both("lost", lambda c: c.with_options(max_retries=0).chat.completions.create(**ASKS, **mock("lost")))
        self.both("says", lambda c: c.chat.completions.create(**ASKS, **mock("says hello there")))
        self.both("raw", lambda c: c.chat.completions.with_raw_response.create(**ASKS, **mock("says hello there")))
        self.both("raw elsewhere", lambda c: c.embeddings.with_raw_response.create(model="m", input="x"))
        self.both("parsed", lambda c: c.chat.completions.parse(**ASKS, response_format=Ticket, **mock('says {"team":"A"}')))
        self.both("parsed not", lambda c: c.chat.completions.parse(**ASKS, response_format=Ticket, **mock('says {"team":1}')))
        self.both("tools", lambda c: c.chat.completions.create(**ASKS, tools=TOOLS, **mock("tools")))
        self.both("response", lambda c: c.responses.create(model="m", input="x", **mock("says hello there")))
        parse: Any = {"model": "m", "input": "x", "text_format": Ticket, **mock('says {"team":"A"}')}
        self.both("response parsed", lambda c: c.responses.parse(**parse))
        self.both("gzip", lambda c: c.chat.completions.create(**ASKS, **mock("gzip")))
        self.both("upload", lambda c: c.files.create(file=("grüße.bin", LARGE), purpose="batch", **mock("digest")))
        self.both("upload from a file", lambda c: c.files.create(file=io.BytesIO(LARGE), purpose="batch", **mock("digest")))
        self.both("images", lambda c: c.images.edit(image=[("a.png", LARGE), ("b.png", LARGE)], prompt="p", **mock("digest")))
        self.both("download", lambda c: c.files.content("file-1", **mock("file 20000")))
        self.both("empty", lambda c: c.responses.delete("resp_1", **mock("empty")))
        self.both("redirect", lambda c: c.models.retrieve("here", **mock("redirect")))
        self.tell("streamed", self._streamed)
        self.tell("helper", self._helper)
        self.tell("raw stream", self._raw)
        self.tell("pages", self._pages)
        for what in ("says hello there", "tools", "cut", "failing"):
            self.tell(f"stream {what}", lambda what=what: self._chunks(what))
            self.tell(f"stream {what}, async", lambda what=what: loop.run_until_complete(self._chunks_later(what)))
        self.tell("many at once", lambda: loop.run_until_complete(self._many()))
        self.tell("realtime", self._realtime)
        for method in ("HEAD", "OPTIONS", "PATCH", "DELETE"):
            self.tell(method, lambda method=method: self._request(method))

    def _chunks(self, what: str) -> Any:
        got = []
        with self.client.chat.completions.create(**ASKS, stream=True, **mock(what)) as stream:
            try:
                for chunk in stream:
                    got.append(_plain(chunk))
            except openai.APIError as error:
                got.append([type(error).__name__, error.message, error.code])
        return got

    async def _chunks_later(self, what: str) -> Any:
        got = []
        async with await self.later.chat.completions.create(**ASKS, stream=True, **mock(what)) as stream:
            try:
                async for chunk in stream:
                    got.append(_plain(chunk))
            except openai.APIError as error:
                got.append([type(error).__name__, error.message, error.code])
        return got

    def _streamed(self) -> Any:
        events = self.client.responses.create(model="m", input="x", stream=True, **mock("says hello there"))
        return [_plain(event) for event in events]

    def _helper(self) -> Any:
        with self.client.chat.completions.stream(**ASKS, tools=TOOLS, **mock("tools")) as stream:
            called = _plain(stream.get_final_completion())
        with self.client.responses.stream(model="m", input="x", **mock("says hello there")) as stream:
            return called, _plain(stream.get_final_response())

    def _raw(self) -> Any:
        raw = self.client.chat.completions.with_streaming_response
        with raw.create(**ASKS, stream=True, **mock("says hello there")) as answer:
            return _told(answer, ["content-type", "x-request-id"]), list(answer.iter_lines())

    def _pages(self) -> Any:
        async def later() -> list[str]:
            return [file.id async for file in self.later.files.list(limit=2, **mock("pages"))]

        return [file.id for file in self.client.files.list(limit=2, **mock("pages"))], loop.run_until_complete(later())

    async def _many(self) -> Any:
        asked = (self.later.chat.completions.create(**ASKS, **mock(f"says number {n}")) for n in range(40))
        return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    def _request(self, method: str) -> Any:
        return _told(httpx2.request(method, f"{self.client.base_url}files/x?a=%2F&a=b&c"), ["content-type", "content-length"])

    def _realtime(self) -> Any:
        got = []
        with self.client.realtime.connect(model="gpt-realtime") as connection:
            for text in ("ü" * 10, "x" * 70_000):
                connection.send({"type": "session.update", "session": {"type": "realtime", "instructions": text}})
                got.append(hashlib.sha256(connection.recv_bytes()).hexdigest())
        return got


def mock(what: str) -> Any:
    return {"extra_headers": {"x-mock": what}}


def _told(answer: Any, names: list[str]) -> Any:
    return answer.status_code, [answer.headers.get(name) for name in names]


def _plain(value: Any) -> Any:
    if hasattr(value, "http_response"):  # a raw answer
        return _told(value, ["content-type", "content-length", "x-request-id", "x-ratelimit-remaining-tokens"]), value.text
    if hasattr(value, "read"):  # a file
        return hashlib.sha256(value.read()).hexdigest()
    return value.to_dict() if isinstance(value, BaseModel) else value


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    suite = Suite(sys.argv[1])
    suite.run()
    print(json.dumps(suite.verdicts))
