"""The file of teachers: what it may say, whom it names for a model, and what its errors tell."""

from collections.abc import Callable
from pathlib import Path

import pytest

from store import teachers
from store.settings import StoreSettings
from store.teachers import ENVIRONMENT, BadTeachers, Entry, Format, NoDeployment, Teacherlist

EXAMPLE = Path(__file__).parents[2] / "deploy/teachers.toml"
SECRET = "0123456789abcdef0123456789abcdef"
AZURE = 'format = "azure-deployments"\napi_version = "2024-10-21"'


class Settings(StoreSettings):
    teachers: Path | None = None
    teacher_url: str = "https://api.openai.com/v1"
    teacher_key: None = None


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        (tmp_path / "teachers.toml").write_text(text)
        return tmp_path / "teachers.toml"

    return write


def entry(name: str = "a", more: str = "", *, models: str = '["a-*"]', url: str = "https://a.test/v1") -> str:
    return f'[[teacher]]\nname = "{name}"\nmodels = {models}\nurl = "{url}"\n{more}\n'


def azure() -> Entry:
    """A teacher of Azure's dated API."""
    base = {"name": "az", "url": "https://r.openai.azure.com", "format": "azure-deployments", "api_version": "2024-10-21"}
    return Entry.model_validate({**base, "deployments": {"gpt-35": "turbo eu"}})


def test_the_example_can_be_read_and_has_each_format() -> None:
    listed = teachers.load(EXAMPLE)
    assert {each.format for each in listed.entries} == set(Format)
    assert listed.fallback is not None
    assert listed.fallback.name == "openai"
    named = {model: listed.of(model) for model in ("gpt-4o-mini", "o4-mini", "azure-gpt-5", "gpt-35-turbo", "org/model", "other")}
    assert [each and each.name for each in named.values()] == ["openai", "openai", "azure", "azure-eu", "local", "openai"]
    assert listed.entries[2].key_file == EXAMPLE.parent / "secrets/azure-eu.key"
    assert listed.prices


def test_the_first_pattern_that_matches_counts_and_case_matters(write: Write) -> None:
    listed = teachers.load(write(entry("a", models='["gpt-4o-mini*", "o?"]') + entry("b", models='["gpt-*"]')))
    found = {model: listed.of(model) for model in ("gpt-4o-mini-2024", "gpt-4o", "o1", "o11", "GPT-4o")}
    assert [each and each.name for each in found.values()] == ["a", "b", "a", None, None]
    assert listed.of(None) is None


def test_without_a_file_the_environment_names_the_only_teacher() -> None:
    listed = teachers.read(Settings(teacher_url="http://x.test/v1/"))
    assert [each.name for each in listed.entries] == [ENVIRONMENT]
    assert listed.of("anything") == listed.of(None) == listed.fallback == listed.entries[0]
    assert listed.entries[0].url == "http://x.test/v1"


@pytest.mark.parametrize(
    ("text", "url", "names", "fallback"),
    [
        (entry("a"), None, ["a"], None),
        (entry("a"), "http://x.test/v1", ["a", ENVIRONMENT], ENVIRONMENT),
        (entry("a", "default = true"), "http://x.test/v1", ["a"], "a"),
        ("", None, [ENVIRONMENT], ENVIRONMENT),
        ('[[price]]\nmodels = ["*"]\ninput = 1\noutput = 2', None, [ENVIRONMENT], ENVIRONMENT),
    ],
)
def test_what_matches_nothing_is_the_defaults_or_the_environments_if_it_was_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str, url: str | None, names: list[str], fallback: str | None
) -> None:
    if url is not None:
        monkeypatch.setenv("STILLROOM_TEACHER_URL", url)
    listed = teachers.read(Settings(teachers=write(text)))
    assert [each.name for each in listed.entries] == names
    assert (listed.fallback and listed.fallback.name) == fallback


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("teachers = 1", "there is no teachers here, only"),
        ("x", "is no TOML"),
        ('[teacher]\nname = "a"', "[teacher] must be [[teacher]]"),
        ("teacher = [1]", "teacher number 1: "),
        ('[[teacher]]\nurl = "https://a.test"', "teacher number 1: name: Field required"),
        ('[[teacher]]\nname = "a"', "teacher 'a': url: Field required"),
        (entry("A b"), "teacher 'A b': name: "),
        (entry("default"), "'default' is STILLROOM_TEACHER_URL's"),
        (entry("a") + entry("a"), "the name a is given to more than one"),
        (entry("a", "default = true") + entry("b", "default = true"), "only one teacher can be the default, not a, b"),
        (entry(models='"a-*"'), "teacher 'a': models: "),
        (entry(models='[""]'), "teacher 'a': models.0: "),
        (entry(url="a.test/v1"), "teacher 'a': url: must begin with http://"),
        (entry(url="https://a.test/v1?x=1"), "url: must have no query"),
        (entry(url=f"https://u:{SECRET}@a.test/v1"), "url: must name no user and no password"),
        (entry("a", f'key = "{SECRET}"'), "`key` is refused: a key does not belong in a file"),
        (entry("a", f'api_key = "{SECRET}"'), "`api_key` is refused"),
        (entry("a", f'token = "{SECRET}"'), "with key_env, or a file with key_file"),
        (entry("a", f'key_env = "{SECRET}"'), "key_env: must be the name of an environment variable"),
        (entry("a", 'key_env = "A"\nkey_file = "b"'), "only one of them"),
        (entry("a", f'headers = {{ Authorization = "{SECRET}" }}'), "'Authorization' would hold a secret"),
        (entry("a", f'headers = {{ x-api-key = "{SECRET}" }}'), "'x-api-key' would hold a secret"),
        (entry("a", 'headers = { host = "b" }'), "'host' is the proxy's own"),
        (entry("a", 'headers = { x-stillroom-task = "b" }'), "'x-stillroom-task' is the proxy's own"),
        (entry("a", f'headers = {{ x = "{SECRET}\\r\\nb: c" }}'), "'x' is no HTTP header with a printable value"),
        (entry("a", 'headers = { "x y" = "z" }'), "'x y' is no HTTP header"),
        (entry("a", 'model = ["x"]'), "teacher 'a': model: there is no such setting"),
        (entry("a", 'format = "bedrock"'), "format: "),
        (entry("a", "read_timeout = 0"), "read_timeout: "),
        (entry("a", "connect_timeout = inf"), "connect_timeout: "),
        (entry("a", 'api_version = "1"'), "api_version: only the formats azure"),
        (entry("a", 'deployments = { a = "b" }'), "deployments: only the format azure-deployments"),
        (entry("a", 'format = "azure-deployments"', url="https://r.test"), "api_version: the format azure-deployments needs one"),
        (entry("a", AZURE, url="https://r.openai.azure.com/openai/v1"), "url: must end before /openai"),
        (entry("a", AZURE, url="https://r.openai.azure.com/openai/deployments/x"), "url: must end before /openai"),
        (entry("a", 'format = "azure"', url="https://r.openai.azure.com"), "url: must end in /openai/v1"),
        ("[[price]]\ninput = 1\noutput = 1", "price number 1: models: Field required"),
        ('[[price]]\nmodels = ["a"]\ninput = -1\noutput = 1', "price number 1: input: "),
        ('[[price]]\nmodels = ["a"]\ninput = nan\noutput = 1', "price number 1: input: "),
    ],
)
def test_a_bad_file_is_told_with_its_name_and_entry_and_without_what_may_be_secret(write: Write, text: str, says: str) -> None:
    path = write(text)
    with pytest.raises(BadTeachers) as bad:
        teachers.load(path)
    assert says in str(bad.value)
    assert str(path) in str(bad.value)
    assert SECRET not in str(bad.value)
    assert bad.value.__cause__ is None or SECRET not in str(bad.value.__cause__)


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadTeachers, match="No such file"):
        teachers.load(tmp_path / "nothing.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadTeachers, match="no text in UTF-8"):
        teachers.load(tmp_path / "x.toml")


def test_a_key_is_read_from_its_variable_or_from_a_file_beside(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(entry("a", 'key_env = "A_KEY"') + entry("b", 'key_file = "b.key"') + entry("c"))
    (path.parent / "b.key").write_text("sk-b\n")
    monkeypatch.setenv("A_KEY", " sk-a\r\n")
    listed = teachers.load(path)
    assert [listed.key(each) for each in listed.entries] == ["sk-a", "sk-b", None]


def test_a_key_that_is_named_but_not_there_is_told_and_never_means_no_key(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = teachers.load(write(entry("a", 'key_env = "A_KEY"') + entry("b", 'key_file = "b.key"')))
    a, b = listed.entries
    for value in ("", " "):
        monkeypatch.setenv("A_KEY", value)
        with pytest.raises(BadTeachers, match=r"teachers.toml, teacher 'a': the environment variable A_KEY is not set, or empty"):
            listed.key(a)
    monkeypatch.setenv("A_KEY", f"{SECRET}\nx: y")
    with pytest.raises(BadTeachers, match="one line") as bad:
        listed.key(a)
    assert SECRET not in str(bad.value)
    with pytest.raises(BadTeachers, match=r"teacher 'b': key_file .*b.key cannot be read \(No such file"):
        listed.key(b)


@pytest.mark.parametrize(
    ("path", "query", "model", "target"),
    [
        (b"/chat/completions", b"", "gpt-4o", b"/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"),
        (b"/chat/completions", b"", "gpt-35", b"/openai/deployments/turbo%20eu/chat/completions?api-version=2024-10-21"),
        (b"/embeddings", b"a=1&api-version=x", "e", b"/openai/deployments/e/embeddings?a=1&api-version=x"),
        (b"/completions", b"xapi-version=1", "a/../b?c#d", b"/openai/deployments/a%2F..%2Fb%3Fc%23d/completions?"
         b"xapi-version=1&api-version=2024-10-21"),
        (b"/models", b"", None, b"/openai/models?api-version=2024-10-21"),
        (b"/responses", b"", "gpt-4o", b"/openai/responses?api-version=2024-10-21"),
        (b"/deployments/d/audio/speech", b"", None, b"/openai/deployments/d/audio/speech?api-version=2024-10-21"),
        (b"/realtime", b"model=gpt-35", None, b"/openai/realtime?model=gpt-35&deployment=turbo%20eu&api-version=2024-10-21"),
        (b"/realtime", b"deployment=d", None, b"/openai/realtime?deployment=d&api-version=2024-10-21"),
    ],
)  # fmt: skip
def test_azures_dated_api_is_asked_at_its_own_paths(path: bytes, query: bytes, model: str | None, target: bytes) -> None:
    assert azure().target(path, query, model) == target


@pytest.mark.parametrize(("path", "model"), [(b"/chat/completions", None), (b"/chat/completions", ".."), (b"/realtime", None)])
def test_a_deployment_that_nobody_named_is_not_guessed(path: bytes, model: str | None) -> None:
    with pytest.raises(NoDeployment, match="'az' needs a model's name"):
        azure().target(path, b"", model)


def test_azures_v1_api_has_openais_paths_and_a_version_only_where_one_is_given() -> None:
    base = {"name": "az", "url": "https://r.openai.azure.com/openai/v1/", "format": "azure"}
    plain, dated = Entry.model_validate(base), Entry.model_validate({**base, "api_version": "preview"})
    assert plain.address("/models") == "https://r.openai.azure.com/openai/v1/models"
    assert dated.target(b"/files", b"limit=1") == b"/files?limit=1&api-version=preview"
    assert (plain.plain, dated.plain) == (True, False)


def test_a_key_goes_where_the_format_wants_it() -> None:
    openai = Entry.model_validate({"name": "a", "url": "https://a.test/v1"})
    assert openai.credential("sk-1") == ("authorization", "Bearer sk-1")
    assert azure().credential("k") == ("api-key", "k")


def test_an_empty_list_knows_nobody() -> None:
    assert Teacherlist().of("x") is None
