"""The official SDK takes the proxy for OpenAI."""

import asyncio
import gzip
import zlib

import openai
import pytest
from pydantic import BaseModel

from store.states import CaptureStatus
from tests.proxy.conftest import KEY, chat
from tests.proxy.upstream import completion, events, hang, json, stream


class Ticket(BaseModel):
    team: str


@pytest.fixture
def sdk(start):
    client = openai.OpenAI(base_url=f"{start().url}/v1", api_key=KEY, max_retries=0, timeout=5)
    yield client
    client.close()


def test_it_gets_its_answers(sdk, teacher):
    answer = sdk.chat.completions.create(**chat())
    assert (answer.choices[0].message.content, answer.usage.total_tokens) == ("from the teacher", 5)
    teacher.reply = stream(events("in ", "parts"))
    parts = [chunk.choices[0].delta.content or "" for chunk in sdk.chat.completions.create(**chat(stream=True))]
    assert "".join(parts) == "in parts"
    with sdk.chat.completions.stream(**chat()) as events_of:
        assert events_of.get_final_completion().choices[0].message.content == "in parts"
    teacher.reply = json(completion('{"team": "billing"}'))
    assert sdk.chat.completions.parse(**chat(), response_format=Ticket).choices[0].message.parsed == Ticket(team="billing")
    raw = sdk.chat.completions.with_raw_response.create(**chat(), extra_headers={"x-stillroom-task": "triage"})
    assert raw.headers["x-stillroom-task"] == "triage"


def test_it_uses_the_rest_of_the_api(sdk, teacher):
    listed = [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]
    teacher.reply = json({"object": "list", "data": listed})
    assert [model.id for model in sdk.models.list()] == ["m"]
    teacher.reply = json(b"\x00\x01\x02")
    assert sdk.files.content("f-1").read() == b"\x00\x01\x02"
    file = {"id": "f-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch", "status": "processed"}
    teacher.reply = json(file)
    assert sdk.files.create(file=("a", b"abc"), purpose="batch").id == "f-1"


def test_its_errors_have_their_types(sdk, teacher):
    for status, kind in [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ]:
        teacher.reply = json(
            {"error": {"message": "said so", "type": "t", "param": "p", "code": "c"}}, status, [("x-request-id", "r-1")]
        )
        with pytest.raises(kind, match="said so") as caught:
            sdk.chat.completions.create(**chat())
        assert (caught.value.code, caught.value.request_id) == ("c", "r-1")
    with pytest.raises(openai.BadRequestError, match="x-stillroom-route"):
        sdk.chat.completions.create(**chat(), extra_headers={"x-stillroom-route": "?"})
    teacher.reply = stream(events("half")[:2], after="cut")
    answer = sdk.chat.completions.create(**chat(stream=True))
    with pytest.raises(openai.APIConnectionError):
        list(answer)
    teacher.reply = hang
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.3).chat.completions.create(**chat())
    teacher.stop()
    with pytest.raises(openai.InternalServerError, match="STILLROOM_TEACHER_URL"):
        sdk.chat.completions.create(**chat())


def test_many_asynchronous_calls_at_once_get_their_own_answers(start, teacher):
    async def echo(exchange):
        text = exchange.seen.json["messages"][-1]["content"]
        reply = stream(events(text)) if exchange.seen.json.get("stream") else json(completion(text), pause=0.05)
        return await reply(exchange)

    async def run(url: str) -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:

            async def ask(text: str) -> tuple[str, str]:
                answer = await client.chat.completions.create(**chat(text))
                chunks = await client.chat.completions.create(**chat(text, stream=True))
                streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
                return answer.choices[0].message.content, streamed

            return await asyncio.gather(*(ask(f"number {n}") for n in range(50)))

    teacher.reply = echo
    assert asyncio.run(run(start().url)) == [(f"number {n}", f"number {n}") for n in range(50)]


PLAIN = b"".join(events("all ", "of it"))
BARE = zlib.compressobj(wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (None, PLAIN),
        (None, PLAIN.replace(b"data: [", b"data:[")),
        (None, PLAIN.replace(b"\n", b"\r\n")),
        ("GZIP", gzip.compress(PLAIN)),
        ("deflate", BARE.compress(PLAIN) + BARE.flush(zlib.Z_SYNC_FLUSH)),
    ],
    ids=["plain", "no space", "crlf", "gzip", "deflate"],
)
def test_it_leaves_behind_the_last_event_and_the_capture_is_complete(sdk, teacher, captures, encoding, body):
    headers = [("Content-Encoding", encoding)] if encoding else []
    teacher.reply = stream([body[i : i + 7] for i in range(0, len(body), 7)], after="hang", headers=headers)
    parts = [chunk.choices[0].delta.content or "" for chunk in sdk.chat.completions.create(**chat(stream=True))]
    assert "".join(parts) == "all of it"
    assert teacher.seen[0].left.wait(2)
    (capture,) = captures(1)
    assert (capture.status, capture.answer_text, capture.error) == (CaptureStatus.COMPLETE, "all of it", None)
