"""What stillroom does not own goes to the teacher and comes back byte for byte."""

import socket

import httpx
import pytest

from tests.proxy.conftest import KEY, until
from tests.proxy.upstream import Exchange, abort, completion, hang, json, stream


def raw(url: str, request: bytes) -> bytes:
    """The bytes that come back for a request written by hand; the connection is then closed."""
    parsed = httpx.URL(url)
    with socket.create_connection((parsed.host, parsed.port), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_method_path_query_and_answer_go_through(start, teacher):
    teacher.reply = json({"as": "it is"}, 207, [("X-Custom", "a")])
    proxy, target = start(), "/v1/files/a%2Fb%20c?after=x&q=%7B%7D&q=2"
    for method in ("GET", "HEAD", "OPTIONS", "DELETE", "POST", "PUT", "PATCH"):
        answer = proxy.client.request(method, target)
        assert (answer.status_code, answer.headers["x-custom"]) == (207, "a")
        assert answer.content == (b"" if method == "HEAD" else b'{"as":"it is"}')
        assert (teacher.seen[-1].method, teacher.seen[-1].target) == (method, target)
        assert teacher.seen[-1].header("host") == [f"127.0.0.1:{teacher.port}"]
        assert not teacher.seen[-1].header("transfer-encoding")


def test_an_empty_bodys_length_goes_through_where_the_client_has_said_it(start, teacher):
    proxy = start()
    for sent in ({}, {"content-length": "0"}):
        proxy.client.request("DELETE", "/v1/files/f-1", headers=sent)
    assert [seen.header("content-length") for seen in teacher.seen] == [[], ["0"]]


def test_a_teacher_url_with_a_path_of_its_own_and_a_slash_behind_it_is_honoured(start, teacher):
    start(teacher_url=f"{teacher.url}/tenants/7/openai/v1/").client.get("/v1/models")
    assert teacher.seen[0].target == "/tenants/7/openai/v1/models"


def test_binary_and_multipart_bodies_stream_through_unchanged(start, teacher):
    proxy, data = start(), bytes(range(256)) * 4000
    proxy.client.post("/v1/audio/transcriptions", content=data)
    proxy.client.post("/v1/files", files={"file": ("a.bin", data)}, data={"purpose": "batch"})
    proxy.client.post("/v1/uploads", content=(data[i : i + 999] for i in range(0, len(data), 999)))
    assert teacher.seen[0].body == data
    assert data in teacher.seen[1].body
    assert teacher.seen[1].header("content-type")[0].startswith("multipart/form-data; boundary=")
    assert (teacher.seen[2].body, teacher.seen[2].header("transfer-encoding")) == (data, ["chunked"])


def test_an_upload_reaches_the_teacher_while_it_is_being_sent(start, teacher):
    def body():
        yield b"first"
        until(lambda: teacher.seen and teacher.seen[0].body == b"first")
        yield b"second"

    assert start().client.post("/v1/files", content=body()).status_code == 200
    assert teacher.seen[0].body == b"firstsecond"


def test_hop_by_hop_and_our_own_headers_stay_here_and_all_others_go_on(start, teacher):
    cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    teacher.reply = json({}, headers=[*cookies, ("Connection", "X-Hop"), ("X-Hop", "1"), ("X-Stillroom-Id", "no")])
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n"
        b"TE: trailers\r\nKeep-Alive: 5\r\nProxy-Authorization: Basic eA==\r\nExpect: 100-continue\r\n"
        b"X-Stillroom-Task: t\r\nX-Two: 1\r\nX-Two: 2\r\nOpenAI-Organization: org\r\nAuthorization: Bearer k\r\n\r\n{}"
    )
    answer = raw(start().url, head).lower()
    seen = {key.lower() for key, _ in teacher.seen[0].headers}
    assert not seen & {"connection", "x-mine", "te", "keep-alive", "proxy-authorization", "expect", "x-stillroom-task"}
    assert not seen & {"accept-encoding", "user-agent"}  # nothing is added
    assert teacher.seen[0].header("x-two") == ["1", "2"]
    assert teacher.seen[0].header("openai-organization") == ["org"]
    assert teacher.seen[0].header("authorization") == ["Bearer k"]
    assert b"set-cookie: a=1\r\nset-cookie: b=2\r\n" in answer
    assert b"x-hop" not in answer
    assert answer.count(b"x-stillroom-id:") == 1
    assert b"x-stillroom-id: no" not in answer


def test_the_operators_key_replaces_the_clients(start, teacher):
    start(teacher_key="sk-operator").client.get("/v1/models")
    assert teacher.seen[0].header("authorization") == ["Bearer sk-operator"]
    assert KEY not in str(teacher.seen[0].headers)


def test_redirects_and_cookies_are_the_clients_business(start, teacher):
    proxy = start()
    teacher.reply = json({}, 302, [("Location", "/elsewhere"), ("Set-Cookie", "session=1")])
    assert proxy.client.get("/v1/files/1/content").headers["location"] == "/elsewhere"
    proxy.client.cookies.clear()
    proxy.client.get("/v1/models")
    assert not teacher.seen[1].header("cookie")


def test_a_stream_of_an_api_that_is_not_captured_goes_through_as_it_comes(start, teacher):
    teacher.reply = stream([b"event: response.created\ndata: 1\n\n", b"event: done\n\n"])
    answer = start().client.post("/v1/audio/speech", json={"stream": True})
    assert answer.content == b"event: response.created\ndata: 1\n\nevent: done\n\n"
    assert answer.headers["x-stillroom-served-by"] == "teacher"


def test_a_body_that_breaks_off_breaks_the_clients_connection(start, teacher):
    teacher.reply = stream([b"data: 1\n\n"], after="cut")
    with pytest.raises(httpx.RemoteProtocolError):
        start().client.post("/v1/audio/speech", json={})


def test_a_client_that_leaves_frees_the_teacher(start, teacher):
    teacher.reply = hang
    with pytest.raises(httpx.ReadTimeout):
        start().client.post("/v1/embeddings", json={}, timeout=0.3)
    assert teacher.seen[0].left.wait(1)


def test_a_kept_connection_that_has_died_is_replaced_without_a_word(start, teacher):
    proxy = start()
    proxy.client.post("/v1/embeddings", json={})
    asked = []

    async def once(exchange: Exchange) -> bool | None:
        asked.append(exchange.seen.connection)
        return await (abort if len(asked) == 1 else json(completion("ok")))(exchange)

    teacher.reply = once
    assert proxy.client.post("/v1/embeddings", json={}).status_code == 200
    assert len(set(asked)) == 2


def test_a_request_that_dies_on_a_fresh_connection_is_not_sent_again(start, teacher):
    teacher.reply = abort
    answer = start().client.post("/v1/embeddings", json={})
    assert (answer.status_code, answer.json()["error"]["code"], len(teacher.seen)) == (502, "teacher_lost", 1)


def test_dot_segments_do_not_leave_the_teachers_api(start, teacher):
    answer = raw(start().url, b"GET /v1/%2e%2e/admin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b" 400 " in answer.splitlines()[0]
    assert not teacher.seen


def test_our_own_pages_answer_and_other_paths_say_where_the_api_is(start):
    proxy = start()
    assert proxy.client.get("/healthz").json() == {"status": "ok"}
    assert proxy.ready()["uncaptured"] == 0
    answer = proxy.client.post("/chat/completions", json={})
    assert answer.status_code == 404
    assert "/v1" in answer.json()["error"]["message"]
