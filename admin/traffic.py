"""Support tickets sent through the proxy as a client sends them, with the OpenAI SDK; what became of each is kept."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from admin.rig import KEY, Rig
from admin.teachers import tickets
from store.states import Server

TASK = "support-triage"


@dataclass(frozen=True)
class Answered:
    """One ticket and what became of it, as the client saw it."""

    ticket: tickets.Ticket
    by: str  #: teacher or student, from the header
    milliseconds: float
    says: Any  #: the five fields; None if the answer is no JSON
    tokens: tuple[int, int] | None  #: asked and answered, where the API says so


@dataclass
class Sent:
    """What became of some requests."""

    answers: list[Answered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def of(self, server: Server) -> list[Answered]:
        return [each for each in self.answers if each.by == server.value]


def send(console: Console, rig: Rig, model: str, at_once: int, some: list[tickets.Ticket], what: str, route: str) -> Sent:
    """Send tickets with the OpenAI SDK, `at_once` at a time, every third streamed."""
    sent = Sent()
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        line = bar.add_task(what, total=len(some))

        async def everything() -> None:
            room = asyncio.Semaphore(at_once)

            async def one(index: int, ticket: tickets.Ticket) -> None:
                async with room:
                    await _ask(client, model, ticket, stream=index % 3 == 0, sent=sent, route=route)
                    bar.advance(line)

            async with _client(rig) as client:
                await asyncio.gather(*(one(i, t) for i, t in enumerate(some)))

        asyncio.run(everything())
    served = f"{len(sent.of(Server.STUDENT))} answered by the student, {len(sent.of(Server.TEACHER))} by the teacher"
    console.print(f"{served}, {len(sent.failures)} failed.")
    return sent


def send_until_student(rig: Rig, model: str, some: list[tickets.Ticket]) -> tuple[Sent, float | None]:
    """Ask until the student answers; what was sent, and when the student began to answer (seconds since 1970), if it did."""
    sent = Sent()

    async def ask() -> float | None:
        async with _client(rig) as client:
            for ticket in some:
                asked = time.time()
                await _ask(client, model, ticket, sent=sent)
                if sent.of(Server.STUDENT):
                    return asked
                await asyncio.sleep(0.25)
        return None

    return sent, asyncio.run(ask())


async def _ask(
    client: AsyncOpenAI, model: str, ticket: tickets.Ticket, *, sent: Sent, stream: bool = False, route: str = "auto"
) -> None:
    body = tickets.request(ticket, model=model, stream=stream)
    headers = {"x-stillroom-task": TASK, "x-stillroom-route": route}
    begun = time.monotonic()
    try:
        raw = await client.chat.completions.with_raw_response.create(**body, extra_headers=headers)
        if stream:
            pieces = [chunk.choices[0].delta.content or "" async for chunk in raw.parse() if chunk.choices]
            text, usage = "".join(pieces), None
        else:
            completion = raw.parse()
            text, usage = completion.choices[0].message.content or "", completion.usage
    except (OpenAIError, httpx.HTTPError) as error:
        sent.failures.append(f"{type(error).__name__}: {error}")
        return
    by, took = raw.headers.get("x-stillroom-served-by", "unknown"), (time.monotonic() - begun) * 1000
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else None
    sent.answers.append(Answered(ticket, by, took, _parsed(text), tokens))


def _client(rig: Rig) -> AsyncOpenAI:
    """No retries: a failure must be seen."""
    return AsyncOpenAI(base_url=rig.base_url, api_key=KEY, max_retries=0, timeout=120)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
