"""Chat completions through the teacher: the same bytes both ways, and a capture that says what happened."""

import asyncio
import gzip
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from unittest.mock import Mock

import httpx
import orjson
import pytest

from proxy.app import Proxy
from proxy.client import Client
from proxy.head import Head
from proxy.settings import ProxySettings
from store.states import CaptureStatus, Server
from store.tables import Task
from tests.proxy.conftest import KEY, chat, until
from tests.proxy.upstream import Exchange, abort, completion, events, hang, json, stream

ODD = (
    b'{"model": "big-1", "model": "big-1", "temperature": NaN, "x": "\\ud800",\n "messages": [{"role": "user", "content": "h"}], '
    b'"n": 1.0, "big": 123456789012345678901234567890, "messages": [{"role":"user","content":"twice"}] }  \n'
)


def test_an_exchange_is_passed_on_unchanged_and_captured(start, teacher, captures):
    teacher.reply = json(completion("urgent"), headers=[("x-request-id", "r-1")])
    body = orjson.dumps(chat("my printer burns", metadata={"a": "1"}, user="u-7"))
    answer = start().chat(body, x_stainless_retry_count="2")
    assert answer.content == orjson.dumps(completion("urgent"))
    assert teacher.seen[0].body == body
    assert answer.headers["x-request-id"] == "r-1"
    (capture,) = captures(1)
    assert capture.id == answer.headers["x-stillroom-id"]
    assert (answer.headers["x-stillroom-served-by"], answer.headers["x-stillroom-task"][:15]) == ("teacher", "sort-the-ticket")
    assert (capture.request, capture.response) == (body, answer.content)
    assert (capture.status, capture.served_by, capture.http_status) == (CaptureStatus.COMPLETE, Server.TEACHER, 200)
    assert (capture.prompt_text, capture.answer_text, capture.finish_reason) == ("my printer burns", "urgent", "stop")
    assert (capture.model, capture.stream, capture.endpoint) == ("big-1", False, "/v1/chat/completions")
    assert (capture.prompt_tokens, capture.completion_tokens, capture.retry_count) == (3, 2, 2)
    assert capture.meta == {"a": "1", "user": "u-7"}
    assert 0 < capture.first_byte_ms <= capture.duration_ms < 5000
    assert capture.fallback is capture.error is capture.adapter_id is None


def test_what_is_hardly_json_is_the_teachers_to_judge(start, teacher, captures):
    assert start().chat(ODD).status_code == 200
    assert teacher.seen[0].body == ODD
    assert captures(1)[0].request == ODD


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_stream_cut_anywhere_keeps_its_bytes(start, teacher, captures, size):
    whole = b"".join(events("Grüße", " 🌍", "!")).replace(b"\n", b"\r\n") + b": comment\r\n\r\n"
    teacher.reply = stream([whole[i : i + size] for i in range(0, len(whole), size)])
    assert start().chat(chat(stream=True)).content == whole
    (capture,) = captures(1)
    assert (capture.answer_text, capture.finish_reason, capture.stream) == ("Grüße 🌍!", "stop", True)
    assert capture.status == CaptureStatus.COMPLETE


def test_events_are_not_held_back(start, teacher):
    teacher.reply = stream(events("a", "b", "c"), pause=0.1)
    arrived = []
    with start().client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        for _ in answer.iter_raw():
            arrived.append(time.monotonic())
    gaps = [late - early for early, late in pairwise(arrived)]
    assert len(arrived) == 6
    assert min(gaps[:5]) > 0.05


@pytest.mark.parametrize("streamed", [True, False])
def test_gzip_goes_through_and_is_captured_decoded(start, teacher, captures, streamed):
    plain = b"".join(events("zip", "ped")) if streamed else orjson.dumps(completion("zipped"))
    packed, coded = gzip.compress(plain), [("Content-Encoding", "gzip")]
    teacher.reply = stream([packed[:20], packed[20:]], headers=coded) if streamed else json(packed, headers=coded)
    proxy = start()
    with proxy.client.stream("POST", "/v1/chat/completions", json=chat(stream=streamed)) as answer:
        assert b"".join(answer.iter_raw()) == packed
        assert answer.headers["content-encoding"] == "gzip"
    (capture,) = captures(1)
    assert (capture.response, capture.answer_text) == (plain, "zipped")


def test_an_encoding_we_cannot_undo_is_kept_as_it_came(start, teacher, captures):
    teacher.reply = json(b"\x1b\x00\x00", headers=[("Content-Encoding", "br")])
    with start().client.stream("POST", "/v1/chat/completions", json=chat()) as answer:
        assert b"".join(answer.iter_raw()) == b"\x1b\x00\x00"
    (capture,) = captures(1)
    assert capture.response == b"\x1b\x00\x00"
    assert "br-encoded" in capture.error


def test_the_teachers_errors_are_the_clients_to_see(start, teacher, captures):
    error = {"error": {"message": "slow down", "type": "t", "param": None, "code": None}}
    proxy, statuses = start(), [400, 401, 429, 500, 503]
    for status in statuses:
        teacher.reply = json(error, status, [("retry-after", "7"), ("x-request-id", "r-9"), ("x-should-retry", "false")])
        answer = proxy.chat()
        assert (answer.status_code, answer.json()) == (status, error)
        assert [answer.headers[h] for h in ("retry-after", "x-request-id", "x-should-retry")] == ["7", "r-9", "false"]
    assert len(teacher.seen) == len(statuses)
    found = captures(len(statuses))
    assert [capture.http_status for capture in found] == statuses
    assert {(capture.status, capture.error) for capture in found} == {(CaptureStatus.FAILED, "slow down")}


async def short(exchange):
    """Announces more than it sends."""
    await exchange.head(200, [("Content-Type", "application/json"), ("Content-Length", "999")])
    await exchange.write(b'{"cut":')
    return False


@pytest.mark.parametrize("reply", [stream(events("half")[:2], after="cut"), short], ids=["chunked", "content-length"])
def test_an_answer_that_breaks_off_breaks_the_clients_connection(start, teacher, captures, reply):
    teacher.reply = reply
    with pytest.raises(httpx.RemoteProtocolError):
        start().chat(chat(stream=True))
    (capture,) = captures(1)
    assert capture.status == CaptureStatus.INCOMPLETE
    assert "broke off" in capture.error


def test_a_stream_that_just_stops_is_not_complete(start, teacher, captures):
    teacher.reply = stream(events("half")[:2])
    assert start().chat(chat(stream=True)).status_code == 200
    assert captures(1)[0].status == CaptureStatus.INCOMPLETE


@pytest.mark.parametrize("reply", [hang, stream(events("half")[:2], after="hang")], ids=["before the answer", "in a stream"])
def test_a_client_that_leaves_frees_the_teacher_and_leaves_an_incomplete_capture(start, teacher, captures, reply):
    teacher.reply = reply
    with pytest.raises(httpx.ReadTimeout):
        start().client.post("/v1/chat/completions", json=chat(stream=True), timeout=0.4)
    assert teacher.seen[0].left.wait(1)
    (capture,) = captures(1)
    assert (capture.status, capture.error) == (CaptureStatus.INCOMPLETE, "the client left before the end")


def test_what_cannot_be_understood_is_refused_in_openais_shape(start, teacher):
    proxy = start()
    for body, headers, code in [
        (b" ", {}, "invalid_json"),
        (b"{", {}, "invalid_json"),
        (b"[" * 100_000, {}, "invalid_json"),
        (b"[1]", {}, "invalid_json"),
        (b'{"model": "m"}', {"x_stillroom_task": "!"}, "bad_task_name"),
        (b'{"model": "m"}', {"x_stillroom_route": "anyone"}, "bad_route"),
    ]:
        answer = proxy.chat(body, **headers)
        assert answer.status_code == 400
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert (answer.json()["error"]["code"], answer.json()["error"]["type"]) == (code, "invalid_request_error")
    assert not teacher.seen


def test_a_request_without_a_model_is_the_teachers_to_judge(start, teacher, captures):
    proxy = start()
    teacher.reply = json(
        {"error": {"message": "you must provide a model parameter", "type": "t", "param": None, "code": None}}, 400
    )
    assert proxy.chat(b'{"messages": []}').status_code == 400
    teacher.reply = json({"id": "resp_1", "object": "response", "status": "completed", "output": []})
    assert proxy.client.post("/v1/responses", content=b"{}").status_code == 200
    assert [seen.body for seen in teacher.seen] == [b'{"messages": []}', b"{}"]
    assert [capture.model for capture in captures(2)] == ["", ""]


def test_a_body_that_is_too_large_is_refused_announced_or_not(start, teacher):
    proxy = start(max_body_bytes=100_000)
    large = orjson.dumps(chat("x" * 200_000))
    for content in (large, (large[i : i + 1000] for i in range(0, len(large), 1000))):
        answer = proxy.client.post("/v1/chat/completions", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert not teacher.seen


def test_a_teacher_that_cannot_be_reached_is_named_and_the_key_is_not(start, teacher, captures):
    teacher.stop()
    answer = start().chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "teacher_unreachable")
    assert f"127.0.0.1:{teacher.port}" in answer.text
    assert "STILLROOM_TEACHER_URL" in answer.text
    assert KEY not in answer.text
    assert (captures(1)[0].status, captures(1)[0].http_status) == (CaptureStatus.FAILED, 502)


def test_a_teacher_that_is_silent_for_too_long_is_a_504(start, teacher, captures):
    teacher.reply = hang
    answer = start(read_timeout=0.3).chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "teacher_timeout")
    assert captures(1)[0].status == CaptureStatus.FAILED


def test_more_streams_than_a_pool_has_connections_are_answered_at_once(start, teacher):
    teacher.reply = json(completion("ok"), pause=0.5)
    proxy, count = start(), 150
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
    body = orjson.dumps(chat())
    open_now = [socket.create_connection(("127.0.0.1", httpx.URL(proxy.url).port), timeout=10) for _ in range(count)]
    for connection in open_now:
        connection.sendall(request % (len(body), body))
    until(lambda: len(teacher.seen) == count, 5)
    assert all(connection.recv(12) == b"HTTP/1.1 200" for connection in open_now)
    for connection in open_now:
        connection.close()


def test_a_client_that_does_not_read_stops_the_flow(start, teacher):
    sent = []

    async def flood(exchange):
        await exchange.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for _ in range(600):
            await exchange.chunk(b"data: " + b"x" * 100_000 + b"\n\n")
            sent.append(100_000)

    teacher.reply = flood
    with start().client.stream("POST", "/v1/chat/completions", json=chat(stream=True)):
        time.sleep(1)
        assert 0 < sum(sent) < 30_000_000


def test_who_asks_not_to_be_captured_is_not(start, teacher, captures):
    proxy = start()
    assert proxy.chat(chat("secret"), x_stillroom_capture="off").status_code == 200
    proxy.chat(chat("open"))
    assert captures(1)[0].prompt_text == "open"


def test_a_task_has_the_name_it_is_given(start, captures, db):
    proxy = start()
    assert proxy.chat(x_stillroom_task="triage/v2").headers["x-stillroom-task"] == "triage/v2"
    assert proxy.chat(chat(metadata={"task": "by body"})).headers["x-stillroom-task"] == "by body"
    assert proxy.chat(chat(metadata={"task": "Ä own purposes!"})).headers["x-stillroom-task"].startswith("sort-the-ticket")
    assert len({capture.task_id for capture in captures(3)}) == 3


def test_text_that_postgresql_refuses_is_stored_without_what_it_refuses(start, teacher, captures):
    teacher.reply = json(completion("a\0b"))
    body = orjson.dumps(chat("x\0y", metadata={"k\0": "\\u0000 \0", "n": 1}))
    start().chat(body)
    (capture,) = captures(1)
    assert (capture.prompt_text, capture.answer_text, capture.request) == ("xy", "ab", body)
    assert capture.meta == {"k": "\\u0000 ", "n": 1}


@pytest.mark.parametrize(
    "fields",
    [
        b'"messages": [{"role": ["system"]}, {"role": {}}]',
        b'"messages": [], "tools": ' + b"[" * 300 + b"]" * 300,
        b'"messages": [], "response_format": ' + b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b'"messages": [], "metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 500,
    ],
    ids=["role", "tools", "response_format", "metadata"],
)
def test_the_strangest_body_is_the_teachers_to_judge_and_is_stored(start, teacher, captures, fields):
    proxy, body = start(), b'{"model": "big-1", %b}' % fields
    assert proxy.chat(body).status_code == 200
    assert teacher.seen[0].body == body
    assert captures(1)[0].request == body
    assert proxy.ready()["rejected"] == 0


@pytest.mark.parametrize(("sent", "kept"), [("9" * 25, 9999), ("9" * 5000, 9999), ("-1", 0), ("x", 0), ("12", 12)])
def test_a_retry_count_is_read_as_far_as_it_can_be_one(start, captures, sent, kept):
    assert start().chat(x_stainless_retry_count=sent).status_code == 200
    assert captures(1)[0].retry_count == kept


def test_the_strangest_answer_is_passed_on_and_stored(start, teacher, captures):
    proxy = start()
    deep = b'{"choices": [{"message": {"tool_calls": [{"function": {"arguments": %b}}]}}]}' % (b"[" * 300 + b"]" * 300)
    for body in (deep, orjson.dumps(completion("", message={"tool_calls": 5})), b'{"error": %b}' % (b"[" * 900 + b"]" * 900)):
        teacher.reply = json(body)
        assert proxy.chat().content == body
    assert len(captures(3)) == 3
    assert proxy.ready()["rejected"] == 0


class Broken(Mapping[str, object]):
    """Routes that nobody can read: a fault of our own."""

    def __getitem__(self, key: str) -> object:
        raise RuntimeError("a fault of our own")

    __iter__ = __len__ = __getitem__  # type: ignore[assignment]


def test_a_failure_of_our_own_has_an_id_that_the_log_has_too_and_no_line_of_the_clients(home, teacher, caplog):
    proxy = Proxy(ProxySettings(home=home, teacher_url=f"{teacher.url}/v1"))
    proxy._routes.table = replace(proxy._routes.table, targets=Broken())

    class Connection:
        transport = Mock()

        def done(self, client: Client) -> None:
            pass

    connection = Connection()
    client = Client(
        connection, "POST", b"/v1/chat/completions", b"forged: \r\nline", Head([]), None, keep_alive=True, expects=False, old=False
    )
    client.feed(orjson.dumps(chat()))
    client.fed()
    proxy.accept(client, None)
    answer = b"".join(call.args[0] for call in connection.transport.write.call_args_list)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert f"x-stillroom-id: {client.id}\r\n".encode() in answer
    assert caplog.messages[-1] == f"{client.id}: POST b'/v1/chat/completions' failed"


@pytest.mark.parametrize("coded", [True, False])
def test_a_key_that_the_teacher_quotes_is_not_kept(start, teacher, captures, coded):
    error = orjson.dumps({"error": {"message": f"Incorrect API key provided: {KEY}. You sent {KEY[:8]}..."}})
    for status in (401, 403):
        teacher.reply = json(gzip.compress(error) if coded else error, status, [("Content-Encoding", "gzip")] if coded else [])
        answer = start().chat()
        assert (answer.status_code, answer.content) == (status, error)
    for capture in captures(2):
        assert capture.response == error.replace(KEY.encode(), b"***")
        assert capture.error == f"Incorrect API key provided: ***. You sent {KEY[:8]}..."


def test_an_error_that_cannot_be_read_might_quote_the_key_and_is_not_kept(start, teacher, captures):
    teacher.reply = json(b"\x1b\x00\x00", 401, [("Content-Encoding", "br")])
    with start().client.stream("POST", "/v1/chat/completions", json=chat()) as answer:
        assert b"".join(answer.iter_raw()) == b"\x1b\x00\x00"
    assert captures(1)[0].response == b""


def test_the_name_that_an_answer_gives_its_task_names_that_task(start, captures):
    proxy = start()
    told = proxy.chat().headers["x-stillroom-task"]
    assert proxy.chat(x_stillroom_task=told).headers["x-stillroom-task"] == told
    first, second = captures(2)
    assert first.task_id == second.task_id
    proxy.chat(x_stillroom_task=first.task_id)
    assert captures(3)[2].task_id == first.task_id


def test_store_false_is_not_captured_where_the_tasks_policy_says_so(start, captures, db):
    proxy = start()
    asked = chat("keep nothing", store=False)
    proxy.chat(asked)
    (kept,) = captures(1)
    with db.begin() as session:
        session.get_one(Task, kept.task_id).policy = {"honour_store": True}
    time.sleep(0.3)  # the routes are read every 50 ms
    answer = proxy.chat(asked)
    assert answer.status_code == 200
    stored = proxy.chat(chat("keep this", store=True)).headers["x-stillroom-id"]
    assert [capture.id for capture in captures(2)] == [kept.id, stored]


def test_a_completion_that_died_unanswered_on_a_kept_connection_is_sent_once_more_on_a_new_one(start, teacher):
    proxy = start()
    both = threading.Barrier(2)

    async def together(exchange: Exchange) -> bool | None:
        await asyncio.to_thread(both.wait, 5)
        return await json(completion("ok"))(exchange)

    teacher.reply = together
    with ThreadPoolExecutor(2) as pool:  # two connections to the teacher are kept then
        assert [answer.status_code for answer in pool.map(lambda _: proxy.chat(), range(2))] == [200, 200]
    kept = {seen.connection for seen in teacher.seen}
    assert len(kept) == 2
    teacher.reply = abort
    assert proxy.chat().status_code == 502
    first, second = (seen.connection for seen in teacher.seen[2:])
    assert (first in kept, second in kept) == (True, False)
