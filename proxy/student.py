"""Asking a student, such that its answer is good enough to send or the teacher can still be asked instead."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import Any

import orjson

from proxy import dialects
from proxy.base import Base
from proxy.breaker import Breaker
from proxy.dialects import Chat, Event, NoAnswer, Unfit
from proxy.errors import UpstreamError
from proxy.headers import Headers
from proxy.upstream import Answer, Upstream
from store import answers, prompts
from store.chat import CHAT
from store.prompts import Transform, UnseenTemplate

__all__ = ["Died", "NoAnswer", "Students"]

log = logging.getLogger("stillroom.proxy")

_JSON = [(b"content-type", b"application/json"), (b"accept", b"application/json, text/event-stream")]
_base = lru_cache(maxsize=64)(Base)  # of an engine: its URL is parsed once


class Died(Exception):
    """The student stopped in the middle of a stream, after its first text."""


class Students:
    """The engines that serve adapters, each behind a breaker."""

    def __init__(self, *, timeout: float) -> None:
        self.breakers: dict[str, Breaker] = {}  #: by engine URL
        self._timeout = timeout
        self._upstream = Upstream(connect_timeout=timeout, read_timeout=timeout)

    async def ask(
        self,
        engines: Sequence[str],
        adapter_id: str,
        request: dict[str, Any],
        context: int | None,
        endpoint: str = CHAT,
        transform: Transform | None = None,
    ) -> Answer:
        """An answer whose whole body, or whose first text if it streams, is here. Raises NoAnswer.

        `request` is the client's body as it came to `endpoint`, and the answer is in that endpoint's shape. `context` is the
        engine's, in tokens; `transform` the adapter's.
        """
        dialect = dialects.of(endpoint, request)
        engine = self._admitted(engines)
        breaker = self.breakers[engine]
        answer = None
        try:
            async with asyncio.timeout(self._timeout):
                body = orjson.dumps(prompts.for_student(request, adapter_id, context, endpoint, transform))
                answer = await self._open(engine, dialect.spoken.encode(), body)
                fit: Answer = await (_stream(answer, dialect, breaker) if request.get("stream") else _whole(answer, dialect))
        except (UpstreamError, TimeoutError, NoAnswer) as error:
            breaker.succeed() if isinstance(error, Unfit) else breaker.fail()
            why = f"no answer within {self._timeout:g} s" if isinstance(error, TimeoutError) else str(error)
            raise NoAnswer(f"student: {why}") from error
        except UnseenTemplate as error:
            breaker.release()
            raise NoAnswer(f"student: {error}") from error
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

    async def _open(self, engine: str, target: bytes, body: bytes) -> Answer:
        answer = await self._upstream.open("POST", _base(engine), target, _JSON, body)
        if answer.status != 200:
            await answer.close()
            raise (NoAnswer if answer.status >= 500 else Unfit)(f"it answered {answer.status}")
        return answer

    def _admitted(self, engines: Sequence[str]) -> str:
        for engine in random.sample(engines, len(engines)):
            if self.breakers.setdefault(engine, Breaker()).admit():
                return engine
        raise NoAnswer("student: the breaker is open")


class _Whole:
    """An answer that is here."""

    status = 200
    sink: Callable[[bytes], bool] | None = None  # is not asked: every part is walked

    def __init__(self, body: bytes) -> None:
        self.headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        self._body = body

    def ready(self) -> bytes | None:
        return self._body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body

    async def close(self) -> None:
        """There is nothing to close."""


class _Stream:
    """An answer of which the first text is here."""

    status = 200
    sink: Callable[[bytes], bool] | None = None  # is not asked: every part is walked
    headers: Headers = [(b"content-type", b"text/event-stream; charset=utf-8")]

    def __init__(self, answer: Answer, first: bytes, rest: AsyncIterator[Event], breaker: Breaker) -> None:
        self._answer, self._first, self._rest, self._breaker = answer, first, rest, breaker

    def ready(self) -> bytes | None:
        return None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        try:
            async for event in self._rest:
                if event.ends:
                    self._breaker.succeed()
                yield event.data
        except (UpstreamError, NoAnswer, orjson.JSONEncodeError) as error:
            self._breaker.succeed() if isinstance(error, Unfit) else self._breaker.fail()
            raise Died(str(error)) from error

    async def close(self) -> None:
        await self._answer.close()


async def _whole(answer: Answer, dialect: Chat) -> _Whole:
    body = b"".join([chunk async for chunk in answer])
    await answer.close()
    return _Whole(dialect.whole(body))


async def _stream(answer: Answer, dialect: Chat, breaker: Breaker) -> _Stream:
    events = _translated(answer, dialect)
    first = b""
    async for event in events:
        first += event.data
        if event.tells:
            return _Stream(answer, first, events, breaker)
    raise NoAnswer("its stream ended without an answer")


async def _translated(answer: Answer, dialect: Chat) -> AsyncIterator[Event]:
    """The events as the client may see them. Raises NoAnswer at an end without the last one."""
    async for data in _events(answer):
        if event := dialect.event(data):
            yield event
            if event.ends:
                return
    raise NoAnswer(f"its stream ended without {dialect.end}")


async def _events(answer: Answer) -> AsyncIterator[bytes]:
    """The data of each event of a stream, wherever its chunks are cut."""
    buffer = b""
    async for chunk in answer:
        buffer = (buffer + chunk).replace(b"\r\n", b"\n")
        *whole, buffer = buffer.split(b"\n\n")
        for event in whole:
            for data in answers.events(event):
                yield data
