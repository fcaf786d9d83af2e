"""A SIMULATED teacher, for showing the wheel to somebody without a key: no model, it reads tickets by rules.

It speaks OpenAI's chat completions (JSON and SSE) and says on every answer that it is a simulation: the header
`x-stillroom-simulation: true` and `system_fingerprint: "simulation"`. It is as slow as it is told to be, and now and
then disagrees with itself, as real teachers do. Usage counts words and marks, not tokens.
"""

import asyncio
import hmac
import logging
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from admin.teachers import shapes, tickets

logger = logging.getLogger("stillroom.admin")

MODEL = "gpt-sim"
HEADERS = {"x-stillroom-simulation": "true"}
OFF_TOPIC = "This is a simulated teacher; it only triages support tickets."
#: Spread of the log-normal latency: 95 of 100 answers take between half and twice the median.
_SIGMA = 0.35
#: The part of an answer's latency before its first chunk.
_TO_FIRST = 0.6


def build(*, latency_ms: float = 400, disagreement: float = 0.02, seed: int = 0, key: str | None = None) -> FastAPI:
    """The simulated teacher.

    latency_ms: median time to a whole answer. disagreement: probability, 0 to 0.5, that two answers to one ticket
    differ. seed: of both, which depend on the order of requests, never on the ticket. key: the API key it asks for, if any.
    """
    wrong = deviation(disagreement)
    rng = random.Random(seed)

    @asynccontextmanager
    async def announced(_: FastAPI) -> AsyncIterator[None]:
        logger.warning(
            "SIMULATED teacher, not a model: triages support tickets by rules, %g ms an answer, %g %% disagreement with itself",
            latency_ms,
            disagreement * 100,
        )
        yield

    app = shapes.app("stillroom: simulated teacher", HEADERS, lifespan=announced)

    def authenticate(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
            raise shapes.Refused(401, "Incorrect API key provided to the simulated teacher.", code="invalid_api_key")

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        authenticate(request)
        return shapes.reply(shapes.models([MODEL], "stillroom-simulation"), HEADERS)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        authenticate(request)
        asked = await shapes.body(request)
        text = answer(asked, rng, wrong)
        prompt = "\n".join(_text(message) for message in asked["messages"])
        whole = shapes.completion(text, model=asked["model"], prompt=prompt, fingerprint="simulation")
        seconds = latency_ms / 1000 * math.exp(rng.gauss(0, _SIGMA))
        if asked.get("stream"):
            events = [shapes.event(chunk) for chunk in shapes.chunks(whole, usage=shapes.wants_usage(asked))]
            return shapes.stream(_paced(events, seconds), HEADERS)
        await asyncio.sleep(seconds)
        return shapes.reply(whole, HEADERS)

    return app


def answer(request: dict[str, Any], rng: random.Random, wrong: float) -> str:
    """What the teacher says to a chat.completions body: the triage of its last user message, wrong in one of the four
    enum fields with probability `wrong`; OFF_TOPIC where the system prompt is not the triage prompt."""
    said = {message.get("role"): _text(message) for message in request["messages"]}
    if said.get("system", "").strip() != tickets.SYSTEM or "user" not in said:
        return OFF_TOPIC
    fields = tickets.label(said["user"])
    if rng.random() < wrong:
        field = rng.choice(list(tickets.FIELDS))
        fields[field] = rng.choice([value for value in tickets.FIELDS[field] if value != fields[field]])
    return tickets.render(fields)


def deviation(disagreement: float) -> float:
    """How often an answer must be wrong for two to differ with this probability: p with 2p(1-p) = disagreement.

    Two answers wrong in different ways differ too: that adds less than p², 0.0001 at 2 %. Raises ValueError outside 0 to 0.5.
    """
    if not 0 <= disagreement <= 0.5:
        raise ValueError(f"disagreement must be between 0 and 0.5, not {disagreement}")
    return (1 - math.sqrt(1 - 2 * disagreement)) / 2


async def _paced(events: list[bytes], seconds: float) -> AsyncIterator[bytes]:
    await asyncio.sleep(seconds * _TO_FIRST)
    for each in events:
        yield each
        await asyncio.sleep(seconds * (1 - _TO_FIRST) / len(events))
    yield shapes.DONE


def _text(message: dict[str, Any]) -> str:
    """A message's content, also where it is a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
