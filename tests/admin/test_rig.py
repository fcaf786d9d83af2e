"""The rig of demo, acceptance tests and benches: a stillroom of its own, whatever the person's environment says."""

from pathlib import Path

import psutil
import pytest

from admin import rig


def test_nothing_of_the_persons_own_stillroom_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_DATABASE_URL", f"sqlite:///{tmp_path}/production.db")
    monkeypatch.setenv("STILLROOM_STUDENT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("STILLROOM_TEACHER_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("STILLROOM_TEACHER_KEY", "sk-production")
    with rig.start(tmp_path / "home", ["simulate"], {"TICK_SECONDS": "2"}, up=["--without", "distill,serving"]) as started:
        assert started.teacher is not None
        for pid in (started.up.pid, started.teacher.pid):
            found = psutil.Process(pid).environ()
            given = {name: value for name, value in found.items() if name.startswith("STILLROOM_") and value}
            assert given == (started.environment if pid == started.up.pid else {})
        assert (tmp_path / "home" / "stillroom.db").exists()
    assert not (tmp_path / "production.db").exists()
