"""Through an HTTP proxy that the environment names."""

import pytest

from tests.proxy.upstream import completion, json


@pytest.fixture
def via(monkeypatch, teacher):
    """Makes the teacher's server the environment's HTTP proxy: what it sees is what such a proxy is told."""
    for name in ("NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("http_proxy", teacher.url)
    monkeypatch.setenv("https_proxy", teacher.url)
    return teacher


def test_a_plain_teacher_is_asked_for_in_the_absolute_form(start, via):
    proxy = start(teacher_url="http://teacher.test:81/api/v1")
    assert proxy.chat().json() == completion("from the teacher")
    assert proxy.client.get("/v1/files/a%2Fb?q=%7B%7D").status_code == 200
    targets = [seen.target for seen in via.seen]
    assert targets == ["http://teacher.test:81/api/v1/chat/completions", "http://teacher.test:81/api/v1/files/a%2Fb?q=%7B%7D"]
    assert via.seen[0].header("host") == ["teacher.test:81"]


def test_a_tunnel_is_asked_for_the_teachers_host(start, via):
    via.reply = json({}, 403)
    answer = start(teacher_url="https://teacher.test/v1").chat()
    assert (via.seen[0].method, via.seen[0].target) == ("CONNECT", "teacher.test:443")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "teacher_unreachable")
