import httpx
import pytest

from serving.vllm import AdapterMissing, StudentDown, StudentError, StudentRefused, StudentServer, StudentSlow
from tests.serving.conftest import behave


def answering(status: int, **kwargs: object) -> StudentServer:
    return StudentServer("http://student", transport=httpx.MockTransport(lambda _: httpx.Response(status, **kwargs)))  # type: ignore[arg-type]


def raising(error: Exception) -> StudentServer:
    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    return StudentServer("http://student", transport=httpx.MockTransport(handler))


def test_adapters_are_loaded_listed_asked_and_unloaded(server: StudentServer, tmp_path: object) -> None:
    assert server.health()
    assert (server.base(), server.context()) == ("base", 512)
    server.load("a@v1", str(tmp_path))
    assert server.models() == ["base", "a@v1"]
    answer = server.complete({"model": "a@v1", "messages": [{"role": "user", "content": "who are you?"}]})
    assert answer["choices"][0]["message"]["content"] == "I am a@v1"
    server.probe("a@v1")
    assert server.tokenize("a@v1", [{"role": "user", "content": "x"}], [{"type": "function"}]) == [1, 1]
    server.unload("a@v1")
    assert server.models() == ["base"]


def test_loading_twice_and_unloading_twice_change_nothing(server: StudentServer, tmp_path: object) -> None:
    server.load("a@v1", str(tmp_path))
    server.load("a@v1", str(tmp_path))
    server.unload("a@v1")
    server.unload("a@v1")
    assert server.models() == ["base"]


def test_an_unknown_adapter_or_folder_is_missing(server: StudentServer) -> None:
    with pytest.raises(AdapterMissing, match="does not exist"):
        server.complete({"model": "b@v1", "messages": []})
    with pytest.raises(AdapterMissing, match="No adapter found"):
        server.load("b@v1", "/nowhere")


def test_a_dead_engine_is_down_although_the_server_says_it_is_well(server: StudentServer) -> None:
    behave(server, dead=True)
    assert server.health()
    with pytest.raises(StudentDown, match="EngineCore encountered"):
        server.probe("base")


def test_a_hung_engine_is_down_after_the_timeout(server: StudentServer) -> None:
    behave(server, hang=True)
    with pytest.raises(StudentSlow, match="in time"):
        server.probe("base", timeout=0.2)


def test_a_server_that_is_not_there_is_down() -> None:
    with StudentServer("http://127.0.0.1:1/v1") as server:
        assert not server.health()
        with pytest.raises(StudentDown, match="cannot be reached"):
            server.models()


def test_what_the_server_will_not_do_is_refused_in_its_own_words() -> None:
    server = answering(400, json={"error": {"message": "max_tokens is too large"}})
    with pytest.raises(StudentRefused, match="vLLM said 400: max_tokens is too large"):
        server.complete({"model": "a"})


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateways_errors_count_as_down(status: int) -> None:
    with pytest.raises(StudentDown):
        answering(status, text="<html>no upstream</html>").complete({"model": "a"})


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("gone")])
def test_every_broken_connection_is_a_student_error(error: Exception) -> None:
    with pytest.raises(StudentError):
        raising(error).complete({"model": "a"})
    assert not raising(error).health()


def test_an_answer_that_is_no_json_object_is_an_error_not_a_crash() -> None:
    with pytest.raises(StudentRefused):
        answering(500, content=b"\xff\xfe", headers={"content-type": "application/json"}).complete({"model": "a"})
    assert answering(200, json=["x"]).models() == []
