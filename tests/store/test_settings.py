"""Where things are."""

from pathlib import Path

import pytest

from store.settings import StoreSettings


def test_the_database_is_sqlite_in_the_home_folder(tmp_path: Path) -> None:
    assert StoreSettings(home=tmp_path, database_url=None).url == f"sqlite:///{tmp_path}/stillroom.db"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_bare_postgresql_url_gets_its_driver(scheme: str) -> None:
    assert StoreSettings(database_url=f"{scheme}://u:p@h/n").url == "postgresql+psycopg://u:p@h/n"


def test_other_urls_are_left_as_they_are() -> None:
    assert StoreSettings(database_url="postgresql+asyncpg://h/n").url == "postgresql+asyncpg://h/n"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "x"))
    settings = StoreSettings()
    assert settings.artifacts == tmp_path / "x" / "artifacts"
    assert settings.logs == tmp_path / "x" / "logs"


def test_every_setting_is_described() -> None:
    assert all(field.description for field in StoreSettings.model_fields.values())
