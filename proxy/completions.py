"""POST /v1/chat/completions, read top to bottom: what is asked, who answers, and the answer on its way to the client."""

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Any

from proxy import request as requests
from proxy.capture import Capture
from proxy.client import Client
from proxy.errors import Refusal, UpstreamError
from proxy.headers import Headers, streams, to_client
from proxy.journal import STOPPED
from proxy.request import Wish
from proxy.routing import Routes, choose
from proxy.settings import ProxySettings
from proxy.spool import Spool
from proxy.student import Died, NoAnswer, Students
from proxy.teacher import Teacher
from proxy.upstream import Answer
from store.states import CaptureStatus, Server
from store.tasks import Identity

log = logging.getLogger("stillroom.proxy")

PATH = b"/v1/chat/completions"
_DIED = Refusal(502, "student_died", "The student stopped in the middle of its answer. The request can be sent again.")


@dataclass(frozen=True)
class _Asked:
    body: bytes
    request: dict[str, Any]
    task: Identity
    wish: Wish


class Completions:
    """Chat completions: captured, and routed to a student where there is one."""

    def __init__(self, settings: ProxySettings, teacher: Teacher, students: Students, routes: Routes, spool: Spool) -> None:
        self._settings = settings
        self._teacher = teacher
        self._students = students
        self._routes = routes
        self._spool = spool

    async def handle(self, client: Client) -> None:
        """Answer one request. Raises Refusal where there is no answer to pass on."""
        asked = await self._read(client)
        capture = self._begin(client, asked)
        client.watch()
        try:
            answer = await self._answer(client, capture, asked)
            await _relay(client, capture, answer, _added(capture, asked.task))
        except asyncio.CancelledError:
            capture.end(CaptureStatus.INCOMPLETE, "the client left before the end" if client.gone else STOPPED)
            raise
        except Refusal as refusal:
            await _refuse(client, capture, refusal, _added(capture, asked.task))
        finally:
            capture.end(CaptureStatus.INCOMPLETE, "the proxy failed on this exchange")  # counts only if nothing has ended it

    async def _read(self, client: Client) -> _Asked:
        body = await client.body(self._settings.max_body_bytes)
        request = requests.parse(body)
        task = requests.identify(request, client.header(b"x-stillroom-task"))
        return _Asked(body, request, task, requests.wish(client.header(b"x-stillroom-route")))

    def _begin(self, client: Client, asked: _Asked) -> Capture:
        off = (client.header(b"x-stillroom-capture") or "").lower() == "off"
        capture = Capture(None if off else self._spool, self._settings.max_body_bytes)
        client.id = capture.id
        retry = (client.header(b"x-stainless-retry-count") or "")[:4]
        capture.begin(
            PATH.decode(),
            asked.body,
            task=client.header(b"x-stillroom-task"),
            retry_count=int(retry) if retry.isdecimal() else 0,
        )
        return capture

    async def _answer(self, client: Client, capture: Capture, asked: _Asked) -> Answer:
        table = self._routes.table
        choice = choose(table, asked.task.id, asked.request, asked.wish, trusted=self._teacher.trusts(client), draw=random.random())
        capture.fallback = choice.why
        if choice.student:
            try:
                return await self._ask_student(capture, table.engines, choice.student, asked)
            except NoAnswer as why:
                capture.fallback = str(why)
        try:
            answer = await self._teacher.ask(client, asked.body)
        except UpstreamError as error:
            if choice.spare:
                try:
                    return await self._ask_student(capture, table.engines, choice.spare, asked)
                except NoAnswer as why:
                    capture.fallback = str(why)
            raise self._teacher.refusal(error) from error
        capture.secrets = self._teacher.judged(client, answer.status)
        return answer

    async def _ask_student(self, capture: Capture, engines: tuple[str, ...], adapter_id: str, asked: _Asked) -> Answer:
        answer = await self._students.ask(engines, adapter_id, asked.request, self._routes.table.context)
        capture.served_by, capture.adapter_id = Server.STUDENT, adapter_id
        return answer


async def _relay(client: Client, capture: Capture, answer: Answer, added: Headers) -> None:
    """Send an answer as it arrives; of one that does not stream the last part waits until the capture is safe.

    An answer that breaks off is not finished: the server then breaks the client's connection too.
    """
    live = streams(answer.headers)
    status = CaptureStatus.COMPLETE if answer.status < 400 else CaptureStatus.FAILED
    held = b""
    capture.answered(answer.status, answer.headers)
    try:
        await client.start(answer.status, to_client(answer.headers, added))
        async for chunk in answer:
            if capture.add(chunk):
                capture.end(status)
            if not live:
                held, chunk = chunk, held
            if chunk:
                await client.send(chunk)
        capture.end(status)
        await client.finish(held)
    except Died as error:
        log.warning("%s: %s died in the middle of its answer: %s", capture.id, capture.adapter_id, error)
        capture.end(CaptureStatus.INCOMPLETE, f"the student died: {error}")
        await client.send(b"data: " + _DIED.body + b"\n\n")
    except UpstreamError as error:
        log.warning("%s: the teacher's answer broke off: %s", capture.id, error)
        capture.end(CaptureStatus.INCOMPLETE, f"the teacher's answer broke off: {error}")
    finally:
        await answer.close()


async def _refuse(client: Client, capture: Capture, refusal: Refusal, added: Headers) -> None:
    capture.answered(refusal.status, [])
    capture.add(refusal.body)
    capture.end(CaptureStatus.FAILED, refusal.message)
    await client.refuse(refusal, added)


def _added(capture: Capture, task: Identity) -> Headers:
    added = [
        (b"x-stillroom-id", capture.id.encode()),
        (b"x-stillroom-served-by", capture.served_by.encode()),
        (b"x-stillroom-task", task.name.encode()),
    ]
    return added if capture.served_by == Server.TEACHER else [(b"x-request-id", capture.id.encode()), *added]
