"""One `stillroom up` a home folder, and what is seen of it from outside."""

import subprocess
import sys
from pathlib import Path

import pytest

from admin import home
from admin.problems import Conflict

HOLD = (
    "import sys, time; from pathlib import Path; from admin import home\n"
    "with home.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def hold(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_one_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        with pytest.raises(Conflict, match=rf"pid {first.pid}.*kill {first.pid}"), home.lock(tmp_path):
            pass
        up = home.running(tmp_path)
        assert up is not None
        assert up.pid == first.pid
        first.kill()


def test_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        first.kill()
    assert home.running(tmp_path) is None
    with home.lock(tmp_path):
        assert home.running(tmp_path) is not None
    assert home.running(tmp_path) is None


def test_nothing_runs_on_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert home.running(tmp_path / "nothing") is None
    assert home.spool(tmp_path / "nothing") == home.Spool()


def test_the_spool_is_measured(tmp_path: Path) -> None:
    for name in ("1-1/00000001.seg", "1-1/00000002.seg", "2-2/00000001.seg", "rejected/cap_1.json"):
        path = tmp_path / "spool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    assert home.spool(tmp_path) == home.Spool(files=3, bytes=15, rejected=1)
