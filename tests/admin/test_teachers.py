import gzip
import json
import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from admin.teachers import replay, shapes, simulate, tickets

Connect = Callable[..., openai.OpenAI]


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """A real server on a free port; its base URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Serves an application and gives openai's client to it."""
    with ExitStack() as stack:

        def connected(app: FastAPI, key: str = "any") -> openai.OpenAI:
            url = stack.enter_context(running(app))
            return stack.enter_context(openai.OpenAI(base_url=url, api_key=key, max_retries=0))

        yield connected


# --- tickets


def test_20_000_drawn_tickets_are_distinct_and_labelled_as_they_were_meant() -> None:
    drawn = tickets.draw(0, 20_000)
    assert [t for t in drawn if tickets.label(t.text) != t.answer] == []
    assert len({t.text for t in drawn}) == 20_000
    without_numbers = {re.sub(r"[A-Z]-\d{4}|\$[\d.]+", "#", t.text) for t in drawn}
    assert len(without_numbers) > 19_000  # not the same few texts under other order numbers


def test_every_value_is_drawn_often_and_every_ticket_is_short() -> None:
    drawn = tickets.draw(1, 3000)
    for field, values in tickets.FIELDS.items():
        counts = Counter(t.answer[field] for t in drawn)
        assert set(counts) == set(values)
        assert min(counts.values()) > 3000 / len(values) / 2
    assert 0.7 < sum(t.answer["order"] is not None for t in drawn) / 3000 < 0.8
    words = [len(t.text.split()) for t in drawn]
    assert min(words) >= 6
    assert max(words) <= 40
    assert max(len(tickets.render(t.answer)) for t in drawn) <= 110


def test_the_same_seed_draws_the_same_tickets_and_another_seed_draws_others() -> None:
    assert tickets.draw(5, 50) == tickets.draw(5, 80)[:50]
    assert not {t.text for t in tickets.draw(5, 500)} & {t.text for t in tickets.draw(6, 500)}


def test_held_out_tickets_are_new_texts_made_of_words_seen_before() -> None:
    drawn = tickets.draw(2, 1000)
    words = [set(re.findall(r"[a-z]+", t.text.lower())) for t in drawn]
    seen = set[str]().union(*words[:800])
    assert sum(bool(w - seen) for w in words[800:]) <= 10


def test_the_system_prompt_names_every_value_and_its_example_is_an_answer() -> None:
    for values in tickets.FIELDS.values():
        assert all(re.search(rf"\b{value}\b", tickets.SYSTEM) for value in values)
    example = tickets.SYSTEM.rsplit("Example: ", 1)[1]
    assert tickets.render(json.loads(example)) == example
    assert list(json.loads(example)) == [*tickets.FIELDS, "order"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ["technical", "other", "normal", "neutral", None]),
        ("Kind regards from nobody", ["technical", "other", "normal", "neutral", None]),
        ("it’s broken and I can’t wait, b-0042 and C-1111", ["technical", "other", "high", "neutral", "B-0042"]),
        ("I was charged for a camera I sent back, no need to hurry", ["returns", "camera", "low", "neutral", None]),
        ("My phone's headphones? Not urgent. I love you, you are a joke", ["technical", "phone", "low", "angry", None]),
        ("order AB-1234 or A-12345", ["technical", "other", "normal", "neutral", None]),
    ],
)
def test_any_text_gets_a_label_by_the_stated_rules(text: str, answer: list[str | None]) -> None:
    assert list(tickets.label(text).values()) == answer


# --- simulate


def test_the_simulated_teacher_answers_openais_client_with_the_truth(connect: Connect) -> None:
    client = connect(simulate.build(latency_ms=0, disagreement=0))
    for ticket in tickets.draw(3, 20):
        raw = client.chat.completions.with_raw_response.create(**tickets.request(ticket, model="gpt-any"))
        whole = raw.parse()
        assert json.loads(whole.choices[0].message.content or "") == ticket.answer
        assert (whole.model, whole.system_fingerprint, whole.choices[0].finish_reason) == ("gpt-any", "simulation", "stop")
        assert raw.headers["x-stillroom-simulation"] == "true"
        assert whole.usage is not None
        assert whole.usage.prompt_tokens > 150
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert [m.id for m in client.models.list()] == ["gpt-sim"]


def test_a_stream_comes_in_several_chunks_with_usage_only_if_asked(connect: Connect) -> None:
    client = connect(simulate.build(latency_ms=200, disagreement=0))
    ticket = tickets.draw(4, 1)[0]
    body = tickets.request(ticket, stream=True)

    arrived, plain = [], []
    for chunk in client.chat.completions.create(**body):
        arrived.append(time.monotonic())
        plain.append(chunk)
    assert json.loads("".join(c.choices[0].delta.content or "" for c in plain)) == ticket.answer
    assert sum(bool(c.choices[0].delta.content) for c in plain) >= 5
    assert arrived[-1] - arrived[0] > 0.02  # sent as it came, not in one piece at the end
    assert [c.choices[0].finish_reason for c in plain][-1] == "stop"
    assert all(c.usage is None for c in plain)

    asked = list(client.chat.completions.create(**body, stream_options={"include_usage": True}))
    assert [bool(c.usage) for c in asked] == [False] * (len(asked) - 1) + [True]
    assert asked[-1].choices == []


def test_a_stream_ends_with_done_and_says_that_it_is_a_simulation(connect: Connect) -> None:
    client = connect(simulate.build(latency_ms=0))
    answer = httpx.post(f"{client.base_url}chat/completions", json=tickets.request(tickets.draw(4, 1)[0], stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-stillroom-simulation"] == "true"
    assert answer.text.endswith("data: [DONE]\n\n")


def test_latency_is_spread_around_its_median(connect: Connect) -> None:
    client = connect(simulate.build(latency_ms=40))
    took = []
    for ticket in tickets.draw(8, 25):
        began = time.monotonic()
        client.chat.completions.create(**tickets.request(ticket))
        took.append(time.monotonic() - began)
    assert sorted(took)[12] > 0.03
    assert max(took) > 1.3 * min(took)


def test_two_answers_to_one_ticket_disagree_at_the_rate_asked_for() -> None:
    rng, wrong = random.Random(0), simulate.deviation(0.02)
    differ, off = 0, Counter[str]()
    for ticket in tickets.draw(9, 3000):
        first, second = (simulate.answer(tickets.request(ticket), rng, wrong) for _ in range(2))
        differ += first != second
        fields = json.loads(first)
        off.update(field for field in fields if fields[field] != ticket.answer[field])
        assert all(fields[field] in values for field, values in tickets.FIELDS.items())
    assert 40 <= differ <= 80  # 60 expected, standard deviation 7.7
    assert 15 <= off.total() <= 47  # one answer in a hundred is off the truth
    assert set(off) == set(tickets.FIELDS)  # never in the order number


def test_disagreement_is_drawn_anew_for_the_same_ticket() -> None:
    request = tickets.request(tickets.draw(9, 1)[0])
    rng = random.Random(0)
    assert len({simulate.answer(request, rng, simulate.deviation(0.5)) for _ in range(200)}) > 5
    with pytest.raises(ValueError, match="between 0 and"):
        simulate.build(disagreement=0.6)


def test_another_system_prompt_gets_a_plain_honest_text() -> None:
    for messages in (
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be a pirate"}, {"role": "user", "content": "Hi"}],
    ):
        assert simulate.answer({"messages": messages}, random.Random(0), 0) == simulate.OFF_TOPIC


def test_a_ticket_in_content_parts_is_read_too() -> None:
    ticket = tickets.draw(9, 1)[0]
    request = tickets.request(ticket)
    request["messages"][1]["content"] = [{"type": "text", "text": ticket.text}]
    assert json.loads(simulate.answer(request, random.Random(0), 0)) == ticket.answer


def test_a_wrong_key_is_refused_in_openais_shape_and_never_repeated(connect: Connect) -> None:
    app = simulate.build(latency_ms=0, key="right-é")
    client = connect(app, key="wrong-key")
    with pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(**tickets.request(tickets.draw(0, 1)[0]))
    assert caught.value.code == "invalid_api_key"
    assert "wrong-key" not in str(caught.value)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_the_right_key_is_let_in(connect: Connect) -> None:
    client = connect(simulate.build(latency_ms=0, key="right"), key="right")
    assert client.chat.completions.create(**tickets.request(tickets.draw(0, 1)[0])).choices


@pytest.mark.parametrize(
    "body", [b"{no json", b"[]", b"{}", b'{"model":"m"}', b'{"model":"m","messages":[]}', b'{"model":"m","messages":[1]}']
)
def test_a_bad_body_is_a_400_in_openais_shape(connect: Connect, body: bytes) -> None:
    client = connect(simulate.build(latency_ms=0))
    answer = httpx.post(f"{client.base_url}chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["message"]
    assert answer.headers["x-stillroom-simulation"] == "true"


def test_anything_else_is_a_404_in_openais_shape(connect: Connect) -> None:
    client = connect(simulate.build(latency_ms=0))
    for answer in (httpx.get(f"{client.base_url}files"), httpx.get(f"{client.base_url}chat/completions")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
        assert answer.headers["x-stillroom-simulation"] == "true"


def test_the_simulation_says_so_at_start(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "stillroom.admin"):
        connect(simulate.build())
    assert "SIMULATED teacher, not a model" in caplog.text


# --- replay

CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Paris, the capital"}'},
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def said(message: dict[str, Any], *, finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-x-2025", "choices": [choice], **more}


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-x", "messages": [{"role": "user", "content": text}], **more}


TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}]
STREAMED = "".join(
    f"data: {json.dumps(chunk, indent=None)}\n\n"
    for chunk in shapes.chunks(said({"content": "word for word"}, usage=USAGE), usage=True)
)
ROWS: list[Any] = [
    {"request": ask("hello"), "response": said({"content": "Hello, how can I help you?"}, usage=USAGE), "meta": {"split": "train"}},
    {"request": ask("weather", tools=TOOLS), "response": said({"content": None, "tool_calls": [CALL]}, finish="tool_calls")},
    {"request": ask("dice", temperature=1), "response": said({"content": "one"}), "meta": {"split": "test"}},
    "{this line is broken",
    {"request": ask("dice", model="gpt-y"), "response": said({"content": "two"}), "meta": {"split": "test"}},
    {"request": {"prompt": "no messages"}, "response": {}},
    "",
    {"request": ask("stream", stream=True), "response_sse": STREAMED + "data: [DONE]\n\n", "response": None},
    {"request": ask("bad"), "response": {"error": {"message": "not with this model", "code": "odd"}}, "meta": {"http_status": 400}},
    {"request": ask("cut"), "response_sse": STREAMED.split("\n\n")[0] + "\n\n", "response": None},
]


def recording(path: Path) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in ROWS) + "\n")
    return path


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return recording(tmp_path / "small.jsonl")


def test_a_recorded_answer_is_found_whatever_model_or_temperature_is_asked(connect: Connect, recorded: Path) -> None:
    client = connect(replay.build(recorded))
    whole = client.chat.completions.create(**ask("hello") | {"model": "another", "temperature": 0.3})
    assert (whole.choices[0].message.content, whole.model, whole.id) == ("Hello, how can I help you?", "gpt-x-2025", "chatcmpl-1")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 12
    assert [m.id for m in client.models.list()] == ["gpt-x", "gpt-y"]


def test_a_request_is_the_same_wherever_its_keys_stand() -> None:
    assert replay.key({"messages": [{"role": "user", "content": "a"}], "tools": []}) == replay.key(
        {"tool_choice": None, "messages": [{"content": "a", "role": "user"}]}
    )
    assert replay.key(ask("a")) != replay.key(ask("a", tools=TOOLS))
    assert replay.key(ask("a")) != replay.key(ask("a", response_format={"type": "json_object"}))


def test_several_answers_to_one_request_are_served_in_turn(connect: Connect, recorded: Path) -> None:
    client = connect(replay.build(recorded))
    heard = [client.chat.completions.create(**ask("dice")).choices[0].message.content for _ in range(5)]
    assert heard == ["one", "two", "one", "two", "one"]


def test_a_recorded_body_is_streamed_in_pieces_with_usage_if_asked(connect: Connect, recorded: Path) -> None:
    client = connect(replay.build(recorded))
    chunks = list(client.chat.completions.create(**ask("hello"), stream=True, stream_options={"include_usage": True}))
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(pieces) > 1
    assert "".join(pieces) == "Hello, how can I help you?"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 12
    silent = list(client.chat.completions.create(**ask("hello"), stream=True))
    assert all(c.usage is None and c.choices for c in silent)


def test_recorded_tool_calls_come_back_whole_and_streamed(connect: Connect, recorded: Path) -> None:
    client = connect(replay.build(recorded))
    whole = client.chat.completions.create(**ask("weather", tools=TOOLS)).choices[0]
    assert whole.message.tool_calls is not None
    assert whole.message.tool_calls[0].model_dump() == CALL
    with client.chat.completions.stream(**ask("weather", tools=TOOLS)) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    call = final.message.tool_calls[0]
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "get_weather", CALL["function"]["arguments"])


def test_what_others_say_beside_openais_fields_is_streamed_too() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "4"}]
    deltas = [c["choices"][0]["delta"] for c in shapes.chunks(said({"content": parts, "reasoning": "2+2"}), usage=True)]
    assert deltas == [{"role": "assistant", "content": parts, "reasoning": "2+2"}, {}]
    assert list(shapes.chunks({"choices": None}, usage=True)) == []


def test_a_recorded_stream_is_served_word_for_word_and_put_together_for_a_plain_request(connect: Connect, recorded: Path) -> None:
    client = connect(replay.build(recorded))
    answer = httpx.post(f"{client.base_url}chat/completions", json=ask("stream", stream=True))
    assert answer.text == STREAMED + "data: [DONE]\n\n"
    assert answer.headers["x-stillroom-replay"] == "true"
    whole = client.chat.completions.create(**ask("stream"))
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason, whole.id) == ("word for word", "stop", "chatcmpl-1")
    assert whole.usage is not None
    assert whole.usage.model_dump(exclude_none=True) == USAGE


def test_a_recorded_stream_that_broke_off_is_an_error_for_a_plain_request(connect: Connect, recorded: Path) -> None:
    client = connect(replay.build(recorded))
    with pytest.raises(openai.InternalServerError, match="broke off"):
        client.chat.completions.create(**ask("cut"))


def test_a_recorded_error_is_replayed_as_such(connect: Connect, recorded: Path) -> None:
    client = connect(replay.build(recorded))
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="not with this model"):
            client.chat.completions.create(**ask("bad"), stream=stream)


def test_an_unknown_request_is_a_404_that_says_so(connect: Connect, recorded: Path) -> None:
    client = connect(replay.build(recorded))
    with pytest.raises(openai.NotFoundError, match=r"not in the recording small\.jsonl") as caught:
        client.chat.completions.create(**ask("never asked"))
    assert caught.value.code == "not_recorded"


def test_unreadable_lines_are_reported_with_their_numbers_and_the_rest_is_served(
    recorded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = replay.read(recorded)
    assert held.unreadable == [4, 6]
    assert sum(map(len, held.answers.values())) == 7
    assert "2 unreadable lines left out: 4, 6" in caplog.text


def test_what_is_nested_too_deep_to_be_written_again_is_unreadable_and_never_found(connect: Connect, recorded: Path) -> None:
    deep = "[" * 300 + "]" * 300
    odd = [
        f'{{"request": {{"messages": [{deep}]}}, "response": {{}}}}',
        f'{{"request": {{"messages": []}}, "response": {{"x": {deep}}}}}',
    ]
    recorded.write_text(recorded.read_text() + "\n".join(odd) + "\n")
    assert replay.read(recorded).unreadable == [4, 6, 11, 12]
    assert len(list(replay.requests(recorded))) == 7
    url = f"{connect(replay.build(recorded)).base_url}chat/completions"
    asked = f'{{"model": "x", "messages": [{{}}], "tools": {deep}}}'
    assert httpx.post(url, content=asked).json()["error"]["code"] == "not_recorded"


def test_a_gzip_recording_is_read_and_a_cut_one_up_to_where_it_ends(tmp_path: Path, recorded: Path) -> None:
    packed = tmp_path / "small.jsonl.gz"
    rows = b"".join(
        json.dumps({"request": ask(f"{i}-{random.Random(i).random()}"), "response": said({})}).encode() + b"\n" for i in range(900)
    )
    packed.write_bytes(gzip.compress(rows))
    assert len(replay.read(packed).answers) == 900
    packed.write_bytes(packed.read_bytes()[:-2000])
    cut = replay.read(packed)
    assert 100 < len(cut.answers) < 900
    assert cut.unreadable == [len(cut.answers) + 1]


def test_a_file_without_any_exchange_says_what_a_line_must_be(tmp_path: Path) -> None:
    empty = tmp_path / "notes.jsonl"
    empty.write_text("just\nnotes\n")
    with pytest.raises(replay.RecordingError, match=r"2 unreadable lines.*each line must be"):
        replay.build(empty)


def test_senders_read_the_rows_of_a_split(recorded: Path) -> None:
    assert [row["response"]["choices"][0]["message"]["content"] for row in replay.requests(recorded, "test")] == ["one", "two"]
    assert len(list(replay.requests(recorded))) == 7
