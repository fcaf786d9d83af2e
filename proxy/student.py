"""Asking a student, such that its answer is good enough to send or the teacher can still be asked instead."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from typing import Any

import orjson

from proxy.base import Base
from proxy.breaker import Breaker
from proxy.errors import UpstreamError
from proxy.headers import Headers
from proxy.upstream import Answer, Upstream
from store import answers, prompts

log = logging.getLogger("stillroom.proxy")

_DONE = b"data: [DONE]\n\n"
_JSON = [(b"content-type", b"application/json"), (b"accept", b"application/json, text/event-stream")]
_FINISHED = {"stop", "tool_calls"}
_base = lru_cache(maxsize=64)(Base)  # of an engine: its URL is parsed once


class NoAnswer(Exception):
    """The student gave no answer that could be sent; the text says why."""


class Died(Exception):
    """The student stopped in the middle of a stream, after its first text."""


class _Unfit(NoAnswer):
    """The student did answer, only not well enough: no fault of its engine."""


class Students:
    """The engines that serve adapters, each behind a breaker."""

    def __init__(self, *, timeout: float) -> None:
        self.breakers: dict[str, Breaker] = {}  #: by engine URL
        self._timeout = timeout
        self._upstream = Upstream(connect_timeout=timeout, read_timeout=timeout)

    async def ask(self, engines: Sequence[str], adapter_id: str, request: dict[str, Any], context: int | None) -> Answer:
        """An answer whose whole body, or whose first text if it streams, is here. Raises NoAnswer."""
        engine = self._admitted(engines)
        breaker = self.breakers[engine]
        answer = None
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._open(engine, adapter_id, request, context)
                fit: Answer = await (_stream(answer, request, breaker) if request.get("stream") else _whole(answer, request))
        except (UpstreamError, TimeoutError, NoAnswer) as error:
            breaker.succeed() if isinstance(error, _Unfit) else breaker.fail()
            why = f"no answer within {self._timeout:g} s" if isinstance(error, TimeoutError) else str(error)
            raise NoAnswer(f"student: {why}") from error
        except Exception as error:
            log.exception("the student could not be asked")
            breaker.release()
            raise NoAnswer(f"student: stillroom failed on it ({type(error).__name__}), its log says why") from error
        except BaseException:
            breaker.release()
            raise
        else:
            breaker.release() if isinstance(fit, _Stream) else breaker.succeed()
            answer = None
            return fit
        finally:
            if answer is not None:
                await answer.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._upstream.close()

    async def _open(self, engine: str, adapter_id: str, request: dict[str, Any], context: int | None) -> Answer:
        body = orjson.dumps(prompts.for_student(request, adapter_id, context))
        answer = await self._upstream.open("POST", _base(engine), b"/v1/chat/completions", _JSON, body)
        if answer.status != 200:
            await answer.close()
            raise (NoAnswer if answer.status >= 500 else _Unfit)(f"it answered {answer.status}")
        return answer

    def _admitted(self, engines: Sequence[str]) -> str:
        for engine in random.sample(engines, len(engines)):
            if self.breakers.setdefault(engine, Breaker()).admit():
                return engine
        raise NoAnswer("student: the breaker is open")


class _Whole:
    """An answer that is here."""

    status = 200

    def __init__(self, body: bytes) -> None:
        self.headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body

    async def close(self) -> None:
        """There is nothing to close."""


class _Stream:
    """An answer of which the first text is here."""

    status = 200
    headers: Headers = [(b"content-type", b"text/event-stream; charset=utf-8")]

    def __init__(self, answer: Answer, first: bytes, rest: AsyncIterator[tuple[bytes, bool]], breaker: Breaker) -> None:
        self._answer, self._first, self._rest, self._breaker = answer, first, rest, breaker

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        try:
            async for event, _ in self._rest:
                if event == _DONE:
                    self._breaker.succeed()
                yield event
        except (UpstreamError, NoAnswer, orjson.JSONEncodeError) as error:
            self._breaker.fail()
            raise Died(str(error)) from error

    async def close(self) -> None:
        await self._answer.close()


async def _whole(answer: Answer, request: dict[str, Any]) -> _Whole:
    body = b"".join([chunk async for chunk in answer])
    await answer.close()
    read = answers.read_json(body)
    if read.error:
        raise NoAnswer(f"its answer cannot be used: {read.error}")
    if read.finish_reason not in _FINISHED:
        raise _Unfit(f"its finish_reason is {read.finish_reason}")
    content = read.message.get("content")
    if _asks_json(request) and not read.message.get("tool_calls") and not _is_json(content):
        raise _Unfit("its answer is not the JSON that response_format asks for")
    return _Whole(orjson.dumps({**orjson.loads(body), "model": request["model"]}))


async def _stream(answer: Answer, request: dict[str, Any], breaker: Breaker) -> _Stream:
    events = _rewritten(answer, request)
    first = b""
    async for event, tells in events:
        first += event
        if tells:
            return _Stream(answer, first, events, breaker)
    raise NoAnswer("its stream ended without an answer")


async def _rewritten(answer: Answer, request: dict[str, Any]) -> AsyncIterator[tuple[bytes, bool]]:
    """The events as the client may see them, each with whether it tells anything. Raises NoAnswer at an end without [DONE]."""
    options = request.get("stream_options")
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    async for data in _events(answer):
        if data == b"[DONE]":
            yield _DONE, False
            return
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise NoAnswer("an event of its stream is no JSON") from error
        if not isinstance(chunk, dict) or chunk.get("error") or not isinstance(chunk.get("choices"), list):
            raise NoAnswer("an event of its stream is an error")
        if chunk["choices"] or usage:
            chunk["model"] = request["model"]
            yield b"data: " + orjson.dumps(chunk) + b"\n\n", any(_tells(choice) for choice in chunk["choices"])
    raise NoAnswer("its stream ended without [DONE]")


async def _events(answer: Answer) -> AsyncIterator[bytes]:
    """The data of each event of a stream, wherever its chunks are cut."""
    buffer = b""
    async for chunk in answer:
        buffer = (buffer + chunk).replace(b"\r\n", b"\n")
        *whole, buffer = buffer.split(b"\n\n")
        for event in whole:
            for data in answers.events(event):
                yield data


def _tells(choice: Any) -> bool:
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(delta, dict):
        return False
    return bool(delta.get("content") or delta.get("tool_calls") or delta.get("refusal") or choice.get("finish_reason"))


def _asks_json(request: dict[str, Any]) -> bool:
    wanted = request.get("response_format")
    return isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema")


def _is_json(content: Any) -> bool:
    try:
        orjson.loads(content)
    except (orjson.JSONDecodeError, TypeError):
        return False
    return True
