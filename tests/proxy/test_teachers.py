"""Several teachers at real upstreams: who is asked for what, where, and under which key."""

import asyncio
from dataclasses import dataclass, field

import pytest

from proxy.errors import Refusal, TimedOut, Unreachable
from proxy.head import Head
from proxy.settings import ProxySettings
from proxy.teacher import Teacher
from proxy.teachers import Teachers
from store.teachers import BadTeachers
from tests.proxy.upstream import Upstream, json

KEY = (b"authorization", b"Bearer sk-alice")
VIRTUAL = (b"authorization", b"Bearer sk-stillroom-1234567890")
ACCOUNT = [(b"openai-organization", b"org-alice"), (b"cookie", b"a=b")]


@dataclass
class Asking:
    """A client's request as a teacher looks at it."""

    raw_path: bytes = b"/v1/chat/completions"
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [KEY])
    method: str = "POST"

    length: bytes | None = None

    @property
    def head(self):
        return Head(self.headers)

    def header(self, _name):
        return None


@pytest.fixture
def other():
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Teachers out of a file of the given text; `url` is STILLROOM_TEACHER_URL's, if it is set."""

    def make(text, url=None, **settings):
        path = tmp_path / "teachers.toml"
        path.write_text(text)
        if url is not None:
            monkeypatch.setenv("STILLROOM_TEACHER_URL", url)
        return Teachers(ProxySettings(teachers=path, **settings))

    monkeypatch.setenv("A_KEY", "sk-operator-a")
    return make


def entry(name, url, more="", models='["{}-*"]'):
    return f'[[teacher]]\nname = "{name}"\nmodels = {models.format(name)}\nurl = "{url}"\n{more}\n'


def ask(teachers, asking=None, model="a-1", named=None, **how):
    """Ask the one that is chosen; its answer's status."""

    async def run():
        teacher = teachers.of(model, named)
        answer = await teacher.ask(asking or Asking(), b"{}", model, **how)
        [_ async for _ in answer]
        await teachers.close()
        return answer.status

    return asyncio.run(run())


def refused(call, *given, **named):
    with pytest.raises(Refusal) as refusal:
        call(*given, **named)
    return refusal.value


def test_each_model_is_its_teachers(make, teacher, other):
    teachers = make(entry("a", f"{teacher.url}/v1") + entry("b", f"{other.url}/x/v1"))
    ask(teachers, model="a-1")
    ask(teachers, Asking(query=b"q=1"), model="b-1")
    assert [seen.target for seen in teacher.seen] == ["/v1/chat/completions"]
    assert [seen.target for seen in other.seen] == ["/x/v1/chat/completions?q=1"]
    assert other.seen[0].header("host") == [other.url.removeprefix("http://")]
    assert teachers.names == ["a", "b"]


def test_the_same_teacher_is_chosen_again_however_many_models_there_have_been(make):
    teachers = make(entry("a", "http://a.test") + entry("b", "http://b.test", "default = true"))
    for number in range(10_000):
        assert teachers.of(f"a-{number}").name == "a"
        assert teachers.of(f"c-{number}").name == "b"
    assert teachers.of("a-" + "x" * 100_000).name == "a"
    assert len(teachers._chosen) <= 4096
    assert max(map(len, filter(None, teachers._chosen))) < 300


def test_what_matches_nothing_and_what_names_no_model_goes_to_the_default(make):
    teachers = make(entry("a", "http://a.test") + entry("b", "http://b.test", "default = true"), url="http://c.test")
    for model in ("unknown", None, 7, ["a-1"], {"a": 1}):
        assert teachers.of(model).name == "b"


def test_without_a_default_it_goes_to_the_environments_if_that_is_named(make):
    assert make(entry("a", "http://a.test"), url="http://c.test/v1").of("unknown").base.url.host == "c.test"


def test_a_model_that_no_teacher_answers_is_not_found_and_the_patterns_are_told(make):
    teachers = make(entry("a", "http://a.test") + entry("b", "http://b.test", models='["b?", "[cd]*"]'))
    for _ in range(2):
        refusal = refused(teachers.of, "gpt-" + "x" * 1000)
        assert (refusal.status, refusal.code, refusal.param) == (404, "model_not_found", "model")
        assert "a-*, b?, [cd]*" in refusal.message
        assert "x-stillroom-teacher" in refusal.message
        assert len(refusal.message) < 400
    refusal = refused(teachers.of, None)
    assert (refusal.status, refusal.code, refusal.param) == (404, "model_not_found", None)
    assert "No teacher is the default" in refusal.message
    assert refused(teachers.of, ["a-1"]).message == refusal.message


def test_a_client_may_choose_by_name_for_any_path(make, other):
    teachers = make(entry("a", "http://127.0.0.1:9") + entry("b", f"{other.url}/v1"))
    ask(teachers, Asking(b"/v1/models", method="GET"), model=None, named="b")
    ask(teachers, model="a-1", named="b")
    assert [seen.target for seen in other.seen] == ["/v1/models", "/v1/chat/completions"]
    refusal = refused(teachers.of, "a-1", "nobody")
    assert (refusal.status, refusal.code) == (400, "unknown_teacher")
    assert "there is a, b" in refusal.message


def test_without_a_file_there_is_one_teacher_and_it_has_a_name(teacher):
    teachers = Teachers(ProxySettings(teacher_url=f"{teacher.url}/v1", teachers=None))
    assert teachers.names == ["default"]
    ask(teachers, model="anything", named="default")
    ask(teachers, model=None)
    assert [seen.header("authorization") for seen in teacher.seen] == [["Bearer sk-alice"]] * 2


def test_a_clients_own_key_goes_through_and_the_operators_replaces_it(make, teacher):
    asking = Asking(headers=[KEY, *ACCOUNT, (b"api-key", b"k-alice"), (b"x-other", b"1")])
    ask(make(entry("a", teacher.url)), asking)
    ask(make(entry("a", teacher.url, 'key_env = "A_KEY"')), asking)
    own, operators = teacher.seen
    assert own.header("authorization") == ["Bearer sk-alice"]
    assert own.header("openai-organization") == ["org-alice"]
    assert operators.header("authorization") == ["Bearer sk-operator-a"]
    assert operators.header("x-other") == ["1"]
    for name in ("api-key", "openai-organization", "cookie"):
        assert operators.header(name) == []


@pytest.mark.parametrize("form", ['format = "azure"', 'format = "azure-deployments"\napi_version = "2024-10-21"'])
def test_azure_gets_the_operators_key_as_api_key(make, teacher, form):
    ask(make(entry("a", teacher.url, f'key_env = "A_KEY"\n{form}')), Asking(headers=[KEY, (b"api-key", b"k-alice"), *ACCOUNT]))
    [seen] = teacher.seen
    assert seen.header("api-key") == ["sk-operator-a"]
    for name in ("authorization", "openai-organization", "cookie"):
        assert seen.header(name) == []


def test_azure_without_a_key_gets_the_clients_own_or_its_entra_token(make, teacher):
    teachers = make(entry("a", f"{teacher.url}/openai/v1", 'format = "azure"'))
    ask(teachers, Asking(headers=[(b"authorization", b"Bearer eyJ0eXAi")]))
    ask(teachers, Asking(headers=[(b"api-key", b"k-alice")]))
    assert [seen.header("authorization") + seen.header("api-key") for seen in teacher.seen] == [["Bearer eyJ0eXAi"], ["k-alice"]]
    assert {seen.target for seen in teacher.seen} == {"/openai/v1/chat/completions"}


def test_azures_dated_api_is_asked_at_the_models_deployment_with_a_version(make, teacher):
    more = 'format = "azure-deployments"\napi_version = "2024-10-21"\ndeployments = { a-2 = "two" }'
    teachers = make(entry("a", f"{teacher.url}/gw", more))
    ask(teachers)
    ask(teachers, Asking(query=b"x=1"), model="a-2")
    ask(teachers, Asking(query=b"api-version=2025-01-01"), model="a-3")
    ask(teachers, Asking(b"/v1/models", method="GET"), model=None, named="a")
    assert [seen.target for seen in teacher.seen] == [
        "/gw/openai/deployments/a-1/chat/completions?api-version=2024-10-21",
        "/gw/openai/deployments/two/chat/completions?x=1&api-version=2024-10-21",
        "/gw/openai/deployments/a-3/chat/completions?api-version=2025-01-01",
        "/gw/openai/models?api-version=2024-10-21",
    ]
    assert all(seen.body == b"{}" for seen in teacher.seen[:3])


def test_a_deployment_that_cannot_be_told_is_refused_with_a_way_out(make):
    teachers = make(entry("a", "http://a.test", 'format = "azure-deployments"\napi_version = "2024-10-21"'))
    teacher, asking = teachers.of(None, "a"), Asking(b"/v1/embeddings")
    assert teacher.wants_model(asking)
    assert not teacher.wants_model(Asking(b"/v1/files"))
    refusal = refused(teacher.target, asking, None)
    assert (refusal.status, refusal.code) == (400, "no_deployment")
    assert "/v1/deployments/NAME/" in refusal.message


def test_static_headers_replace_the_clients(make, teacher):
    teachers = make(entry("a", teacher.url, 'headers = { OpenAI-Organization = "org-ours", x-team = "t" }'))
    ask(teachers, Asking(headers=[KEY, *ACCOUNT, (b"x-team", b"mine"), (b"x-team", b"mine too")]))
    [seen] = teacher.seen
    assert [seen.header(name) for name in ("openai-organization", "x-team", "authorization")] == [
        ["org-ours"],
        ["t"],
        ["Bearer sk-alice"],
    ]


@pytest.mark.parametrize("form", ["", 'format = "azure"'])
def test_stillrooms_own_key_is_never_sent_to_a_teacher(make, teacher, form):
    for headers in ([VIRTUAL], [(b"api-key", b"sk-stillroom-1234567890")]):
        ask(make(entry("a", teacher.url, f'key_env = "A_KEY"\n{form}')), Asking(headers=headers), own_key=True)
        keyless = make(entry("a", teacher.url, form))
        for own_key in (True, False):
            refusal = refused(ask, keyless, Asking(headers=headers), own_key=own_key)
            assert (refusal.status, refusal.code) == (401, "no_teacher_key")
            assert "key_env or key_file in STILLROOM_TEACHERS" in refusal.message
    assert len(teacher.seen) == 2
    assert "sk-stillroom" not in str([seen.headers for seen in teacher.seen])
    plain = Teacher(ProxySettings(teacher_url=teacher.url, teacher_key=None))
    assert "STILLROOM_TEACHER_KEY" in refused(plain.headers, Asking(headers=[KEY]), own_key=True).message


def test_a_key_among_a_websockets_protocols_is_replaced_too_and_one_in_the_query_refused(make):
    protocols = b"realtime, openai-insecure-api-key.sk-stillroom-1, openai-beta.realtime-v1"
    asking = Asking(b"/v1/realtime", b"model=a-1", [(b"sec-websocket-protocol", protocols)], "GET")
    keyed, keyless = make(entry("a", "http://a.test", 'key_env = "A_KEY"')).of("a-1"), make(entry("a", "http://a.test")).of("a-1")
    assert keyed.headers(asking, own_key=True, upgrades=True) == [
        (b"sec-websocket-protocol", b"realtime, openai-beta.realtime-v1"),
        (b"authorization", b"Bearer sk-operator-a"),
    ]
    assert refused(keyless.headers, asking, upgrades=True).code == "no_teacher_key"
    for teacher in (keyed, keyless):
        assert refused(teacher.headers, Asking(query=b"api-key=sk-stillroom-1")).code == "key_in_query"


def test_a_clients_key_is_trusted_only_by_the_teacher_that_took_it(make):
    teachers = make(entry("a", "http://a.test") + entry("b", "http://b.test") + entry("c", "http://c.test", 'key_env = "A_KEY"'))
    a, b, c = (teachers.of(None, name) for name in "abc")
    assert a.judged(Asking(), 200) is None
    assert [each.trusts(Asking()) for each in (a, b, c)] == [True, False, True]
    assert a.judged(Asking(), 401) == [b"Bearer sk-alice", b"sk-alice"]
    assert not a.trusts(Asking())
    assert a.trusts(Asking(headers=[VIRTUAL]), own_key=True)


def test_what_a_refusal_may_quote_is_the_operators_key_where_that_was_sent(make):
    for form, quoted in (("", [b"Bearer sk-operator-a", b"sk-operator-a"]), ('format = "azure"', [b"sk-operator-a"])):
        teacher = make(entry("a", "http://a.test", f'key_env = "A_KEY"\n{form}')).of("a-1")
        assert teacher.judged(Asking(), 403) == quoted
        assert teacher.judged(Asking(headers=[VIRTUAL]), 403, own_key=True) == quoted
        assert teacher.judged(Asking(), 500) == quoted
        assert teacher.judged(Asking(), 204) is None


def test_a_failure_names_the_setting_that_is_to_be_looked_at(make):
    teachers = make(entry("a", "http://a.test"), url="http://c.test")
    a, environments = teachers.of("a-1"), teachers.of(None)
    assert "url of teacher 'a' in STILLROOM_TEACHERS" in a.refusal(Unreachable("x")).message
    assert "read_timeout of teacher 'a'" in a.refusal(TimedOut("x")).message
    assert "STILLROOM_TEACHER_URL" in environments.refusal(Unreachable("x")).message
    assert "STILLROOM_READ_TIMEOUT" in environments.refusal(TimedOut("x")).message


def test_each_teacher_has_its_own_patience(make, teacher, other):
    teacher.reply = other.reply = json({}, pause=0.6)
    teachers = make(entry("a", teacher.url, "read_timeout = 0.2") + entry("b", other.url), read_timeout=30)

    async def run():
        with pytest.raises(TimedOut):
            await teachers.of("a-1").ask(Asking(), b"{}")
        answer = await teachers.of("b-1").ask(Asking(), b"{}")
        [_ async for _ in answer]
        await teachers.close()
        return answer.status

    assert asyncio.run(run()) == 200


def test_prices_are_read_from_the_same_file(make):
    teachers = make('[[price]]\nmodels = ["big-*"]\ninput = 2.0\noutput = 4.0')
    assert teachers.prices.cost("big-1", 1_000_000, 1_000_000) == 6
    assert teachers.names == ["default"]


def test_a_key_that_is_not_there_keeps_the_proxy_from_starting(make):
    with pytest.raises(BadTeachers, match=r"teachers.toml, teacher 'a': the environment variable NO_SUCH_KEY is not set"):
        make(entry("a", "http://a.test", 'key_env = "NO_SUCH_KEY"'))
