"""The teachers of a file (STILLROOM_TEACHERS), or the one of the environment: which answers which model, where, under which key.

Pure but for reading the file and the keys it names, which are never in it. What a file looks like: deploy/teachers.toml.
"""

import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Protocol, Self, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

ENVIRONMENT = "default"  #: the name of the teacher that STILLROOM_TEACHER_URL and STILLROOM_TEACHER_KEY make

#: What Azure's dated API serves below /openai/deployments/{deployment}; all else is below /openai.
DEPLOYED = frozenset(
    (b"/chat/completions", b"/completions", b"/embeddings", b"/audio/transcriptions", b"/audio/translations", b"/audio/speech",
     b"/images/generations", b"/images/edits")
)  # fmt: skip
_REALTIME = b"/realtime"
_SECRET = {"key", "apikey", "token", "secret", "password", "authorization", "cookie"}
_NOT_YOURS = {"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "expect", "keep-alive"}


class BadTeachers(ValueError):
    """The file, or a key that it names, cannot be used. The message says which entry and why, and holds no secret."""


class NoDeployment(ValueError):
    """The request does not say which of Azure's deployments it is for."""


class Format(StrEnum):
    """How an API wants to be asked."""

    OPENAI = "openai"
    AZURE = "azure"  #: Azure's v1 API: OpenAI's paths, the key in api-key
    AZURE_DEPLOYMENTS = "azure-deployments"  #: Azure's dated API: deployments in the path, api-version in the query


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


Pattern = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Entry(_Table):
    """One [[teacher]]."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    models: tuple[Pattern, ...] = ()  #: fnmatch patterns; without any it is chosen by name, or as the default
    url: str
    key_env: str | None = None
    key_file: Path | None = None
    format: Format = Format.OPENAI
    api_version: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    deployments: dict[str, str] = {}  #: the deployment of a model, where it has another name
    headers: dict[str, str] = {}  #: sent with each request, in place of the client's of the same name
    connect_timeout: Seconds | None = None
    read_timeout: Seconds | None = None
    default: bool = False  #: answers what no teacher's pattern matches, and what names no model

    @model_validator(mode="before")
    @classmethod
    def _no_key(cls, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            if name not in cls.model_fields and _SECRET & set(re.split(r"[_-]", name.lower())):
                raise ValueError(
                    f"`{name}` is refused: a key does not belong in a file that is copied, shown and checked in. "
                    "Name an environment variable that holds it with key_env, or a file with key_file"
                )
        return data

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        url = http_url(url)
        if "@" in urlsplit(url).netloc:
            raise ValueError("must name no user and no password: a key is named by key_env or key_file")
        return url

    @field_validator("key_env")
    @classmethod
    def _variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):  # not quoted: it may be a key
            raise ValueError("must be the name of an environment variable (A-Z, 0-9 and _), not a key")
        return name

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not (value.isascii() and value.isprintable()):
                raise ValueError(f"{name!r} is no HTTP header with a printable value")
            if _SECRET & set(name.lower().split("-")):
                raise ValueError(f"{name!r} would hold a secret: name the key with key_env or key_file")
            if name.lower() in _NOT_YOURS or name.lower().startswith("x-stillroom-"):
                raise ValueError(f"{name!r} is the proxy's own to send")
        return {name.lower(): value for name, value in headers.items()}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == ENVIRONMENT:
            raise ValueError(f"name: {ENVIRONMENT!r} is STILLROOM_TEACHER_URL's; take another, and `default = true` for its place")
        if self.key_env and self.key_file:
            raise ValueError("key_env and key_file: only one of them can say where the key is")
        if self.api_version and self.format == Format.OPENAI:
            raise ValueError("api_version: only the formats azure and azure-deployments have one")
        if self.deployments and self.format != Format.AZURE_DEPLOYMENTS:
            raise ValueError("deployments: only the format azure-deployments has them; elsewhere the body's model names one")
        path = urlsplit(self.url).path
        if self.format == Format.AZURE_DEPLOYMENTS:
            if not self.api_version:
                raise ValueError("api_version: the format azure-deployments needs one, such as 2024-10-21")
            if path.endswith(("/openai", "/v1")) or "/deployments" in path:
                raise ValueError("url: must end before /openai, as https://NAME.openai.azure.com does; what follows is added")
        elif self.format == Format.AZURE and ".openai.azure." in self.url and path != "/openai/v1":
            raise ValueError("url: must end in /openai/v1, as https://NAME.openai.azure.com/openai/v1 does")
        return self

    @property
    def plain(self) -> bool:
        """Whether a request's target is the client's own."""
        return self.api_version is None

    def credential(self, key: str) -> tuple[str, str]:
        """The header that carries a key."""
        return ("authorization", f"Bearer {key}") if self.format == Format.OPENAI else ("api-key", key)

    def target(self, path: bytes, query: bytes = b"", model: str | None = None) -> bytes:
        """Path and query below `url` for what a client asked of /v1{path}?{query}, as they are in a request line.

        Raises NoDeployment.
        """
        if self.format == Format.AZURE_DEPLOYMENTS:
            if path in DEPLOYED:
                path = b"/openai/deployments/" + self._deployment(model) + path
            else:
                if path == _REALTIME and not _has(query, b"deployment"):
                    model = model or next(iter(parse_qs(query.decode("latin-1")).get("model", [])), None)
                    query = _joined(query, b"deployment=" + self._deployment(model))
                path = b"/openai" + path
        if self.api_version is not None and not _has(query, b"api-version"):
            query = _joined(query, b"api-version=" + self.api_version.encode())
        return path + b"?" + query if query else path

    def address(self, path: str, model: str | None = None) -> str:
        """The whole URL of /v1{path}. Raises NoDeployment."""
        return self.url + self.target(path.encode(), model=model).decode()

    def _deployment(self, model: str | None) -> bytes:
        name = self.deployments.get(model, model) if model else None
        if name is None or name in {".", ".."}:
            raise NoDeployment(f"teacher {self.name!r} needs a model's name to find its deployment")
        return quote(name, safe="").encode()


class Price(_Table):
    """One [[price]]: US dollars per million tokens."""

    models: tuple[Pattern, ...] = Field(min_length=1)
    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None  #: of prompt tokens that the teacher had in its cache; as `input` where absent


class Settings(Protocol):
    """What a room's settings say of teachers."""

    teachers: Path | None
    teacher_url: str
    teacher_key: SecretStr | None

    @property
    def model_fields_set(self) -> set[str]: ...


@dataclass(frozen=True)
class Teacherlist:
    """All teachers in the file's order, and what they cost."""

    entries: tuple[Entry, ...] = ()
    prices: tuple[Price, ...] = ()
    fallback: Entry | None = None  #: one of `entries`
    path: Path | None = None  #: None without a file
    environment_key: SecretStr | None = None

    def of(self, model: str | None) -> Entry | None:
        """Whose patterns match the model first, else the fallback."""
        if model is not None:
            for entry in self.entries:
                if matches(entry.models, model):
                    return entry
        return self.fallback

    def key(self, entry: Entry) -> str | None:
        """The operator's key for a teacher; None where each client's own goes through. Raises BadTeachers."""
        if entry.key_env is not None:
            where, value = f"the environment variable {entry.key_env}", os.environ.get(entry.key_env, "")
        elif entry.key_file is not None:
            where, value = f"key_file {entry.key_file}", self._read(entry, entry.key_file)
        elif entry.name == ENVIRONMENT and self.environment_key is not None:
            where, value = "STILLROOM_TEACHER_KEY", self.environment_key.get_secret_value()
            if not value.strip():
                return None
        else:
            return None
        value = value.strip()
        if not value:
            raise BadTeachers(self.named(entry, f"{where} is not set, or empty"))
        if not value.isprintable():
            raise BadTeachers(self.named(entry, f"{where} must hold one line without control characters"))
        return value

    def named(self, entry: Entry, what: str) -> str:
        """A sentence about an entry that says where it is."""
        return what if entry.name == ENVIRONMENT else f"{self.path}, teacher {entry.name!r}: {what}"

    def _read(self, entry: Entry, path: Path) -> str:
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BadTeachers(self.named(entry, f"key_file {path} cannot be read ({_why(error)})")) from error


def read(settings: Settings) -> Teacherlist:
    """The teachers as configured. Raises BadTeachers.

    Without a file, and beside one that has no teacher, STILLROOM_TEACHER_URL is the only one. Beside one without a default it
    takes that place if it is set.
    """
    listed = load(settings.teachers) if settings.teachers is not None else Teacherlist()
    if listed.entries and (listed.fallback is not None or "teacher_url" not in settings.model_fields_set):
        return listed
    own = environment(settings)
    return replace(listed, entries=(*listed.entries, own), fallback=own, environment_key=settings.teacher_key)


def environment(settings: Settings) -> Entry:
    """The teacher at STILLROOM_TEACHER_URL, taken as it is: each room's settings judge it."""
    return Entry.model_construct(name=ENVIRONMENT, url=settings.teacher_url.rstrip("/"))


def load(path: Path) -> Teacherlist:
    """The teachers and prices of a file. No key is read. Raises BadTeachers."""
    path = path.expanduser()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadTeachers(f"{path} (STILLROOM_TEACHERS) cannot be read: {_why(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise BadTeachers(f"{path} is no TOML: {error}") from error
    if unknown := set(data) - {"teacher", "price"}:
        raise BadTeachers(f"{path}: there is no {', '.join(sorted(unknown))} here, only [[teacher]] and [[price]]")
    entries = tuple(_located(entry, path.parent) for entry in _tables(path, data, "teacher", Entry))
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadTeachers(f"{path}: the name {', '.join(twice)} is given to more than one teacher")
    defaults = [entry for entry in entries if entry.default]
    if len(defaults) > 1:
        raise BadTeachers(f"{path}: only one teacher can be the default, not {', '.join(entry.name for entry in defaults)}")
    return Teacherlist(entries, _tables(path, data, "price", Price), defaults[0] if defaults else None, path)


def matches(patterns: Iterable[str], model: str) -> bool:
    """Whether one of the patterns matches; upper and lower case count."""
    return any(fnmatchcase(model, pattern) for pattern in patterns)


def http_url(url: str) -> str:
    """An API's base URL without a slash at its end. Raises ValueError for what no API can have."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://, as https://api.openai.com/v1 does")
    if any(mark in url for mark in "?# "):
        raise ValueError("must have no query, no fragment and no space")
    try:
        named = urlsplit(url).port != 0 and httpx.URL(url).host
    except (ValueError, httpx.InvalidURL) as error:
        raise ValueError(f"cannot be read: {error}") from error
    if not named:
        raise ValueError("must name a host, and no port 0")
    return url.rstrip("/")


T = TypeVar("T", bound=_Table)


def _tables(path: Path, data: dict[str, Any], kind: str, table: type[T]) -> tuple[T, ...]:
    tables = data.get(kind, [])
    if not isinstance(tables, list):
        raise BadTeachers(f"{path}: [{kind}] must be [[{kind}]], with two brackets on each side: there may be several")
    found = []
    for number, each in enumerate(tables, start=1):
        name = each.get("name") if isinstance(each, dict) else None
        try:
            found.append(table.model_validate(each))
        except ValidationError as error:
            which = repr(name) if isinstance(name, str) and len(name) < 65 else f"number {number}"
            raise BadTeachers(f"{path}, {kind} {which}: {_explain(error)}") from None  # its cause may hold what was written
    return tuple(found)


def _located(entry: Entry, folder: Path) -> Entry:
    return entry if entry.key_file is None else entry.model_copy(update={"key_file": folder / entry.key_file.expanduser()})


def _explain(error: ValidationError) -> str:
    """What is wrong, without what was written."""
    said = []
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(map(str, each["loc"]))
        what = "there is no such setting" if each["type"] == "extra_forbidden" else each["msg"].removeprefix("Value error, ")
        said.append(f"{where}: {what}" if where else what)
    return "; ".join(said)


def _why(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is no text in UTF-8"


def _has(query: bytes, name: bytes) -> bool:
    return any(part.partition(b"=")[0] == name for part in query.split(b"&"))


def _joined(query: bytes, more: bytes) -> bytes:
    return query + b"&" + more if query else more
