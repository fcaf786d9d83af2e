"""The doctor: each check says how it is and what to do."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import Result

from admin import doctor
from admin.doctor import Check, Mark
from admin.settings import AdminSettings
from serving.command import free_port
from store import keys
from store.session import Database


@pytest.fixture
def teacher() -> Iterator[str]:
    """A teacher that takes the key sk-good, and says 401 to everybody else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/v1/models"
            self.send_response(200 if self.headers["authorization"] == "Bearer sk-good" and found else 401 if found else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def examine(tmp_path: Path, teacher: str) -> Callable[..., dict[str, Check]]:
    """The doctor's checks by name, on a machine where all is well but for what is given."""

    def examine(**changes: Any) -> dict[str, Check]:
        well = {"home": tmp_path, "database_url": None, "teacher_url": teacher, "teacher_key": None, "teachers": None}
        ports = {"proxy_port": free_port(), "admin_port": free_port()}
        return {check.name: check for check in doctor.examine(AdminSettings(**{**well, **ports, **changes}))}

    return examine


Examine = Callable[..., dict[str, Check]]


def test_a_machine_where_all_is_well_passes(examine: Examine) -> None:
    checks = examine()
    assert {name for name, check in checks.items() if check.mark == Mark.FAILED} == set()
    assert {"python", "database", "port: proxy", "port: admin", "teacher", "base model", "disk", "memory", "licence"} <= set(checks)
    assert "made at the first start" in checks["database"].says
    assert "terms" in checks["licence"].says


def test_looking_changes_nothing(examine: Examine, tmp_path: Path) -> None:
    examine()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "mark", "says"),
    [
        (None, Mark.OK, "each client's own is passed on"),
        ("sk-good", Mark.OK, "answers"),
        ("sk-bad", Mark.FAILED, "refuses STILLROOM_TEACHER_KEY"),
    ],
)
def test_the_teachers_key_is_tried_and_never_shown(examine: Examine, key: str | None, mark: Mark, says: str) -> None:
    check = examine(teacher_key=key)["teacher"]
    assert check.mark == mark
    assert says in check.says
    assert "sk-" not in check.says


def test_a_teacher_at_another_path_is_told(examine: Examine, teacher: str) -> None:
    check = examine(teacher_url=teacher.removesuffix("/v1"))["teacher"]
    assert check.mark == Mark.WARNING
    assert "with its /v1?" in check.says


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://no such host/v1", "nonsense"])
def test_a_teacher_that_does_not_answer_is_told(examine: Examine, url: str) -> None:
    check = examine(teacher_url=url)["teacher"]
    assert check.mark == Mark.FAILED
    assert "STILLROOM_TEACHER_URL" in check.says


def test_each_teacher_of_a_file_is_tried_with_its_own_key(
    examine: Examine, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [
        ("good", teacher, 'key_env = "GOOD_KEY"'),
        ("bad", teacher, 'key_file = "bad.key"'),
        ("none", teacher, ""),
        ("unset", teacher, 'key_env = "NO_SUCH_KEY"'),
        ("away", "http://127.0.0.1:9/v1", ""),
        ("azure", teacher.removesuffix("/v1"), 'format = "azure-deployments"\napi_version = "2024-10-21"'),
    ]
    file = tmp_path / "teachers.toml"
    file.write_text("".join(f'[[teacher]]\nname = "{name}"\nurl = "{url}"\n{more}\n' for name, url, more in tables))
    (tmp_path / "bad.key").write_text("sk-bad")
    monkeypatch.setenv("GOOD_KEY", "sk-good")
    checks = examine(teachers=file)
    found = {name: (checks[f"teacher: {name}"].mark, checks[f"teacher: {name}"].says) for name, *_ in tables}
    assert {name: mark for name, (mark, _) in found.items() if mark != Mark.FAILED} == {
        "good": Mark.OK,
        "none": Mark.OK,
        "azure": Mark.WARNING,
    }
    assert "refuses the key in" in found["bad"][1]
    assert "teacher 'unset': the environment variable NO_SUCH_KEY is not set" in found["unset"][1]
    assert f"its url in {file}" in found["away"][1]
    assert "/openai/models?api-version=2024-10-21 answers 404" in found["azure"][1]
    assert checks["teacher"].mark == Mark.OK  # STILLROOM_TEACHER_URL, for what none of them answers
    assert "sk-" not in "".join(check.says for check in checks.values())


def test_a_file_of_teachers_that_cannot_be_used_is_told(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "teachers.toml").write_text('[[teacher]]\nname = "a"\nurl = "https://a.test"\nkey = "sk-secret"')
    check = examine(teachers=tmp_path / "teachers.toml")["teachers"]
    assert check.mark == Mark.FAILED
    assert "teacher 'a': `key` is refused" in check.says
    assert "sk-secret" not in check.says


def test_a_key_that_no_teacher_is_sent_is_told(examine: Examine, teacher: str, tmp_path: Path) -> None:
    (tmp_path / "teachers.toml").write_text(f'[[teacher]]\nname = "a"\nurl = "{teacher}"\ndefault = true')
    assert "teachers" not in examine(teachers=tmp_path / "teachers.toml")
    check = examine(teachers=tmp_path / "teachers.toml", teacher_key="sk-good")["teachers"]
    assert check.mark == Mark.NOTE
    assert "STILLROOM_TEACHER_KEY is sent nowhere" in check.says


def test_a_port_that_another_has_is_told(examine: Examine, teacher: str) -> None:
    check = examine(proxy_port=int(teacher.split(":")[2].split("/")[0]))["port: proxy"]
    assert check.mark == Mark.FAILED
    assert "set STILLROOM_PROXY_PORT" in check.says


def test_an_address_that_is_not_this_machines_is_told(examine: Examine) -> None:
    check = examine(admin_host="192.0.2.1")["port: admin"]
    assert check.mark == Mark.FAILED
    assert "STILLROOM_ADMIN_HOST" in check.says


def test_a_database_at_an_earlier_or_a_newer_schema_is_told(examine: Examine, sqlite: Database) -> None:
    assert "answers, schema" in examine()["database"].says
    with sqlite.begin() as session:
        session.connection().execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    assert examine()["database"].mark == Mark.FAILED
    assert "newer stillroom" in examine()["database"].says
    with sqlite.begin() as session:
        session.connection().execute(sa.text("DELETE FROM alembic_version"))
    assert examine()["database"].mark == Mark.NOTE


def test_a_database_that_is_away_is_told_without_its_password(examine: Examine) -> None:
    check = examine(database_url="postgresql://u:sk-secret@127.0.0.1:1/x")["database"]
    assert check.mark == Mark.FAILED
    assert "does not answer" in check.says
    assert "sk-secret" not in check.says


def test_a_base_model_that_is_not_there_is_told(examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_BASE_MODEL", str(tmp_path / "model"))
    assert examine()["base model"].mark == Mark.FAILED
    (tmp_path / "model").mkdir()
    assert examine()["base model"].mark == Mark.FAILED
    (tmp_path / "model" / "config.json").write_text("{}")
    assert examine()["base model"].mark == Mark.OK


def test_a_prepared_base_model_is_found(examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("STILLROOM_BASE_MODEL", "org/model")
    assert examine()["base model"].mark == Mark.NOTE
    (tmp_path / "org--model").mkdir()
    (tmp_path / "org--model" / "config.json").write_text("{}")
    assert "is prepared" in examine()["base model"].says


def test_a_key_that_others_can_use_is_warned_of(examine: Examine) -> None:
    assert "security" not in examine(teacher_key="sk-good")
    assert "security" not in examine(proxy_host="0.0.0.0")
    says = examine(teacher_key="sk-good", proxy_host="0.0.0.0")["security"].says
    assert "STILLROOM_TEACHER_KEY is set" in says
    assert "at your expense" in says
    assert "`stillroom keys add LABEL`" in says
    assert "security" not in examine(teacher_key="sk-good", proxy_host="0.0.0.0", require_key=True)


def test_a_key_in_a_file_of_teachers_is_warned_of_too(examine: Examine, teacher: str, tmp_path: Path) -> None:
    file = tmp_path / "teachers.toml"
    file.write_text(f'[[teacher]]\nname = "one"\nmodels = ["*"]\nurl = "{teacher}"\nkey_env = "ONE"\n')
    assert "names keys of yours" in examine(teachers=file, proxy_host="0.0.0.0")["security"].says
    file.write_text(f'[[teacher]]\nname = "one"\nmodels = ["*"]\nurl = "{teacher}"\n')
    assert "security" not in examine(teachers=file, proxy_host="0.0.0.0")


def test_keys_that_are_required_and_not_there_are_told(examine: Examine, sqlite: Database) -> None:
    assert "keys" not in examine()
    check = examine(require_key=True)["keys"]
    assert (check.mark, "stillroom keys add" in check.says) == (Mark.WARNING, True)
    with sqlite.begin() as session:
        keys.make(session, "ci", by="tests")
    assert examine(require_key=True)["keys"].mark == Mark.OK


def test_the_exit_code_says_whether_stillroom_can_run(stillroom: Callable[..., Result], teacher: str) -> None:
    ports = {"STILLROOM_PROXY_PORT": str(free_port()), "STILLROOM_ADMIN_PORT": str(free_port())}
    well = stillroom("doctor", "--json", env={"STILLROOM_TEACHER_URL": teacher, **ports})
    assert well.exit_code == 0
    ill = stillroom("doctor", env={"STILLROOM_TEACHER_URL": "http://127.0.0.1:9/v1", **ports})
    assert ill.exit_code == 1
    assert "failed" in ill.stdout
