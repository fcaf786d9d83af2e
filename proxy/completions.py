"""A completion, read top to bottom: what is asked, who answers, and the answer on its way to the client."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from proxy import request as requests
from proxy.capture import Capture, Next
from proxy.client import Client, not_kept
from proxy.errors import Broken, Refusal, UpstreamError
from proxy.headers import Headers, streams, to_client
from proxy.http1 import Http1Answer
from proxy.journal import STOPPED
from proxy.keys import Gate
from proxy.metrics import Counters
from proxy.request import Wish
from proxy.routing import Routes, choose
from proxy.settings import ProxySettings
from proxy.spool import NotKept, Spool, Then, Waiting, nobody
from proxy.student import Died, NoAnswer, Students
from proxy.teacher import Teacher
from proxy.teachers import HEADER, Teachers
from proxy.upstream import Answer
from store import chat
from store.routes import Table
from store.states import CaptureStatus, Server
from store.tasks import Identity

log = logging.getLogger("stillroom.proxy")

ENDPOINTS = {path.encode(): path for path in chat.ENDPOINTS}
LEFT = "the client left before the end"
LEFT_CODE = 499  #: what is counted then, where there was no answer yet
_SMALL = 1_000_000  # bytes: a larger body is not read between two others
_DIED = Refusal(502, "student_died", "The student stopped in the middle of its answer. The request can be sent again.")


class _Asked(NamedTuple):
    body: bytes
    endpoint: str
    request: dict[str, Any]
    task: Identity
    wish: Wish
    teacher: Teacher
    model: str | None


Spawn = Callable[[Client, Coroutine[Any, Any, None]], None]


class Completions:
    """Completions of all endpoints: captured, and routed to a student where there is one."""

    def __init__(
        self,
        settings: ProxySettings,
        gate: Gate,
        teachers: Teachers,
        students: Students,
        routes: Routes,
        spool: Spool,
        counters: Counters,
        spawn: Spawn,
    ) -> None:
        """`spawn` makes a task that handles a client from then on."""
        self._settings = settings
        self._strict = settings.when_full == "refuse"
        self._gate = gate
        self._teachers = teachers
        self._students = students
        self._routes = routes
        self._spool = spool
        self._counters = counters
        self._spawn = spawn

    async def handle(self, client: Client) -> None:
        """Answer one request. Raises Refusal where there is no answer to pass on."""
        asked = self._read(client, await client.body(self._settings.max_body_bytes))
        begun = Waiting() if self._strict else None
        capture = self._begin(client, asked, begun.then if begun else nobody)
        if begun is not None:
            try:
                await begun
            except NotKept as why:
                raise not_kept(why) from why
        await self._finish(client, asked, capture)

    def quick(self, client: Client) -> bool:
        """As `handle`, as far as nothing has to be waited for but a teacher to whom a connection is kept: most requests of a
        task without a student, at half the cost. False: it is not one of these, and nothing has been done. Raises Refusal.
        """
        body = None if self._strict else client.peek()
        if body is None or len(body) > min(_SMALL, self._settings.max_body_bytes):
            return False
        asked = self._read(client, body)
        if asked.task.id in self._routes.table.targets or asked.wish is Wish.STUDENT:
            return False
        capture = self._begin(client, asked, nobody)
        exchange = _Quick(self, client, asked, capture)
        try:
            answer = asked.teacher.offer(client, body, exchange.answered, asked.model, own_key=client.key is not None)
        except (Refusal, UpstreamError) as error:
            refusal = error if isinstance(error, Refusal) else asked.teacher.refusal(error)
            self.refuse(client, capture, refusal, asked)
            return True
        if answer is None:
            self.resume(client, asked, capture, None)
        else:
            exchange.answer = answer
            client.watch(exchange.left)
        return True

    def resume(self, client: Client, asked: _Asked, capture: Capture, answer: Answer | None) -> None:
        """What a quick exchange cannot finish: an answer that is not whole, or (None) no connection that was kept and alive."""
        self._spawn(client, self._finish(client, asked, capture, answer, fresh=True))

    def refuse(self, client: Client, capture: Capture, refusal: Refusal, asked: _Asked) -> None:
        """Send an error of our own, as the answer that is captured."""
        added = _added(capture, asked.task)
        self._counters.refused(refusal.code)
        capture.answered(refusal.status, [])
        capture.add(refusal.body)
        client.finishing = True
        capture.end(CaptureStatus.FAILED, refusal.message, lambda _: client.refuse(refusal, added))

    def _read(self, client: Client, body: bytes) -> _Asked:
        endpoint = ENDPOINTS[client.raw_path]
        request = requests.parse(body)
        task = requests.identify(request, client.header(b"x-stillroom-task"), endpoint, self._routes.directory)
        self._gate.permit(client.key, task.id, task.name)
        wish = requests.wish(client.header(b"x-stillroom-route"))
        model = request.get("model")
        teacher = self._teachers.of(model, client.header(HEADER))
        return _Asked(body, endpoint, request, task, wish, teacher, model if isinstance(model, str) else None)

    def _begin(self, client: Client, asked: _Asked, then: Then) -> Capture:
        off = (client.header(b"x-stillroom-capture") or "").lower() == "off" or (
            asked.request.get("store") is False and asked.task.id in self._routes.table.unstored
        )
        if off and client.key is not None and client.key.budget_usd is not None:
            says = f"The key {client.key.label!r} has a budget, and what is not captured cannot be charged to it."
            raise Refusal(403, "capture_required", says)
        task, endpoint = asked.task.name, asked.endpoint

        def count(ended: Capture) -> None:
            code = ended.status or (LEFT_CODE if client.gone else 500)
            served_by, seconds = ended.served_by, ended.seconds or 0.0
            self._counters.exchange(task, served_by, endpoint, code, seconds, ended.first_byte, ended.fallback)

        capture = Capture(None if off else self._spool, self._settings.max_body_bytes, count, strict=self._strict)
        client.id = capture.id
        retry = (client.header(b"x-stainless-retry-count") or "")[:4]
        capture.begin(
            asked.endpoint,
            asked.body,
            then,
            task=client.header(b"x-stillroom-task"),
            key=None if client.key is None else client.key.id,
            traceparent=client.header(b"traceparent"),
            retry_count=int(retry) if retry.isdecimal() else 0,
        )
        return capture

    async def _finish(
        self, client: Client, asked: _Asked, capture: Capture, answer: Answer | None = None, *, fresh: bool = False
    ) -> None:
        client.watch()
        try:
            answer = answer or await self._answer(client, capture, asked, fresh=fresh)
            self._counters.streams += (live := streams(answer.headers))
            try:
                await _relay(client, capture, answer, _added(capture, asked.task))
            finally:
                self._counters.streams -= live
        except asyncio.CancelledError:
            capture.end(CaptureStatus.INCOMPLETE, LEFT if client.gone else STOPPED)
            raise
        except Refusal as refusal:
            self.refuse(client, capture, refusal, asked)
        finally:
            capture.end(CaptureStatus.INCOMPLETE, "the proxy failed on this exchange")  # counts only if nothing has ended it

    async def _answer(self, client: Client, capture: Capture, asked: _Asked, *, fresh: bool) -> Answer:
        table, teacher, own_key = self._routes.table, asked.teacher, client.key is not None
        choice = choose(
            table, asked.task.id, asked.request, asked.wish, asked.endpoint,
            trusted=lambda: teacher.trusts(client, own_key=own_key), draw=random.random(),
        )  # fmt: skip
        capture.fallback = choice.why
        if choice.student:
            try:
                return await self._ask_student(capture, table, choice.student, asked)
            except NoAnswer as why:
                capture.fallback = str(why)
        try:
            answer = await teacher.ask(client, asked.body, asked.model, own_key=own_key, fresh=fresh)
        except UpstreamError as error:
            if choice.spare:
                try:
                    return await self._ask_student(capture, table, choice.spare, asked)
                except NoAnswer as why:
                    capture.fallback = str(why)
            raise teacher.refusal(error) from error
        capture.teacher = teacher.name
        capture.secrets = teacher.judged(client, answer.status, own_key=own_key)
        return answer

    async def _ask_student(self, capture: Capture, table: Table, adapter_id: str, asked: _Asked) -> Answer:
        transform = table.targets[asked.task.id].transform
        answer = await self._students.ask(table.engines, adapter_id, asked.request, table.context, asked.endpoint, transform)
        capture.served_by, capture.adapter_id = Server.STUDENT, adapter_id
        return answer


class _Quick:
    """An exchange with a teacher on a kept connection, without a task until one is needed."""

    __slots__ = ("_asked", "_capture", "_client", "_owner", "answer")

    def __init__(self, owner: Completions, client: Client, asked: _Asked, capture: Capture) -> None:
        self.answer: Http1Answer | None = None
        self._owner, self._client, self._asked, self._capture = owner, client, asked, capture

    def answered(self, answer: Http1Answer) -> None:
        """The head of the answer is here, or there will be none. Never raises."""
        client, asked, capture = self._client, self._asked, self._capture
        if client.gone or client.response_complete:
            return
        try:
            error = answer.error
            if error is None:
                capture.teacher = asked.teacher.name
                capture.secrets = asked.teacher.judged(client, answer.status, own_key=client.key is not None)
                body = answer.ready()
                if body is None:
                    self._owner.resume(client, asked, capture, answer)
                else:
                    _send(client, capture, answer, body, _added(capture, asked.task))
            elif isinstance(error, Broken) and not answer.answering:
                self._owner.resume(client, asked, capture, None)
            else:
                self._owner.refuse(client, capture, asked.teacher.refusal(error), asked)
        except Exception:  # the connection's reader must go on
            log.exception("%s failed", capture.id)
            capture.end(CaptureStatus.INCOMPLETE, "the proxy failed on this exchange")
            client.cut()

    def left(self) -> None:
        """The client has left, or the server stops."""
        client = self._client
        self._capture.end(CaptureStatus.INCOMPLETE, LEFT if client.gone else STOPPED)
        if self.answer is not None:
            self.answer.drop()
        client.cut()


def _send(client: Client, capture: Capture, answer: Answer, body: bytes, added: Headers) -> None:
    """Send an answer that is here, when its capture is durable."""
    capture.answered(answer.status, answer.headers)
    if body:
        capture.add(body)
    client.start(answer.status, to_client(answer.headers, added), hold=True)
    status = CaptureStatus.COMPLETE if answer.status < 400 else CaptureStatus.FAILED
    capture.end(status, then=client.acknowledge(body, added))


async def _relay(client: Client, capture: Capture, answer: Answer, headers: Headers) -> None:
    """Send an answer as it arrives; its last part, or a stream's last event, waits until the capture is durable.

    An answer that breaks off is not finished: the client's connection is broken too.
    """
    body = answer.ready()
    if body is not None:
        _send(client, capture, answer, body, headers)
        return
    status = CaptureStatus.COMPLETE if answer.status < 400 else CaptureStatus.FAILED
    capture.answered(answer.status, answer.headers)
    live = streams(answer.headers)
    held = b""
    added: Next | None = None  # a part has been told to the capture, and is still to be sent

    def at_once(chunk: bytes) -> bool:
        nonlocal added
        added = capture.add(chunk)
        if added is not Next.SEND or not client.push(chunk):
            return False
        added = None
        return True

    try:
        client.start(answer.status, to_client(answer.headers, headers))
        answer.sink = at_once if live else None
        async for chunk in answer:
            next, added = added or capture.add(chunk), None
            if not live:
                held, chunk = chunk, held
            elif next is Next.HOLD:
                held += chunk
                continue
            elif next is Next.END:
                await capture.ended(status)
                held, chunk = b"", held + chunk
            if chunk:
                await client.send(chunk)
        capture.end(status, then=client.acknowledge(held, headers))
    except Died as error:
        log.warning("%s: %s died in the middle of its answer: %s", capture.id, capture.adapter_id, error)
        capture.end(CaptureStatus.INCOMPLETE, f"the student died: {error}")
        await client.send(b"data: " + _DIED.body + b"\n\n")
    except UpstreamError as error:
        log.warning("%s: the teacher's answer broke off: %s", capture.id, error)
        capture.end(CaptureStatus.INCOMPLETE, f"the teacher's answer broke off: {error}")
        if held:
            await client.send(held)
    except NotKept as why:
        log.error("%s: broken off before its end, which cannot be captured: %s", capture.id, why)
    finally:
        await answer.close()


def _added(capture: Capture, task: Identity) -> Headers:
    added = [
        (b"x-stillroom-id", capture.id.encode()),
        (b"x-stillroom-served-by", capture.served_by.encode()),
        (b"x-stillroom-task", task.name.encode()),
    ]
    return added if capture.served_by == Server.TEACHER else [(b"x-request-id", capture.id.encode()), *added]
