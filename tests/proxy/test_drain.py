"""What dead processes left in the spool, brought in by a process that ends."""

import subprocess
import sys
import time
from pathlib import Path

import orjson
from sqlmodel import select

from proxy.drain import drain
from proxy.settings import ProxySettings
from proxy.spool import Folder, Spool, nobody
from store import ids
from store.session import Database
from store.tables import Capture
from tests.proxy.conftest import chat
from tests.proxy.upstream import completion


def exchange(spool: Spool) -> str:
    """One that is at its end."""
    begin = {"kind": "begin", "id": ids.new("cap"), "at": time.time(), "endpoint": "/v1/chat/completions", "task": None}
    spool.append({**begin, "retry_count": 0}, orjson.dumps(chat()), nobody)
    end = {"kind": "end", "id": begin["id"], "status": "complete", "http_status": 200}
    spool.append(end, orjson.dumps(completion("x")), nobody)
    return str(begin["id"])


def spool_of(settings: ProxySettings) -> Spool:
    root = settings.home_path / "spool"
    return Spool(Folder.make(root), max_bytes=1 << 20, segment_bytes=1 << 20, grouped=False)


def stored(db: Database) -> list[str]:
    with db.read() as session:
        return list(session.exec(select(Capture.id)))


def test_what_is_left_is_stored_and_the_folders_go(sqlite: Database, tmp_path: Path) -> None:
    settings = ProxySettings(home=tmp_path)
    spool = spool_of(settings)
    left = [exchange(spool) for _ in range(3)]
    spool.close()
    assert drain(sqlite, settings, 5) == []
    assert stored(sqlite) == left
    assert list((tmp_path / "spool").glob("*/*.seg")) == []
    assert drain(sqlite, settings, 5) == []


def test_a_living_process_keeps_its_last_file_and_what_has_ended_in_it_is_stored(sqlite: Database, tmp_path: Path) -> None:
    settings = ProxySettings(home=tmp_path)
    spool = spool_of(settings)
    ended = exchange(spool)
    (left,) = drain(sqlite, settings, 0.3)
    assert left.exists()
    assert stored(sqlite) == [ended]
    spool.close()


def test_as_a_process_it_ends_and_leaves_the_spool_to_others(sqlite: Database, tmp_path: Path) -> None:
    settings = ProxySettings(home=tmp_path)
    spool = spool_of(settings)
    left = exchange(spool)
    spool.close()
    command = [sys.executable, "-P", "-m", "proxy.drain", "5"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, env={"STILLROOM_HOME": str(tmp_path), "PYTHONPATH": str(root)}, check=True, capture_output=True)
    assert (ended.stdout, stored(sqlite)) == (b"", [left])
    assert drain(sqlite, settings, 1) == []  # its lock went with it
