"""From the spool to the database: everything once, whatever the database does meanwhile."""

import contextlib
import shutil
import socket
import sqlite3
import threading
from pathlib import Path

import sqlalchemy as sa
from sqlmodel import select

from proxy.drainer import Drainer
from proxy.spool import Folder, NotKept, Spool
from store import migrate
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
    assert [capture.id for capture in captures(20)] == sorted(sent)  # of one millisecond's ids the order is chance


def test_what_was_stored_before_is_not_stored_again(start, home, db, captures, tmp_path):
    proxy = start()
    proxy.chat(chat("one"))
    spool = next(path for path in (home / "spool").iterdir() if path.is_dir())
    shutil.copytree(spool, tmp_path / "copy")
    first = captures(1)
    shutil.copytree(tmp_path / "copy", home / "spool" / "9-dead")  # as if the process had died right after storing
    again = start()
    until(lambda: not (home / "spool" / "9-dead").exists())
    assert again.ready()["database"] == "ok"
    assert [capture.id for capture in captures(1)] == [capture.id for capture in first]


def test_a_stop_stores_what_is_there_and_leaves_no_folder(start, home, captures, db):
    proxy = start()
    for _ in range(3):
        proxy.chat()
    proxy.stop()
    assert len(captures(3)) == 3
    assert not any(path.is_dir() for path in (home / "spool").iterdir())


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


def spooled(root: Path, captures: dict[str, float]) -> Spool:
    """A spool with whole exchanges in it: their ids, and when they began."""
    spool = Spool(Folder.make(root), max_bytes=10**6, segment_bytes=10**6, grouped=False)
    for id, at in captures.items():
        add(spool, id, at)
    return spool


def add(spool: Spool, id: str, at: float) -> None:
    meta = {"kind": "begin", "id": id, "at": at, "endpoint": "/v1/chat/completions", "task": None, "retry_count": 0}
    told: list[NotKept | None] = []
    spool.append(meta, b'{"model": "m", "messages": []}', told.append)
    spool.append({"kind": "end", "id": id, "status": "complete", "http_status": 200}, b"{}", told.append)
    assert told == [None, None]


def stored(db: Database) -> set[str]:
    with db.read() as session:
        return set(session.exec(select(Capture.id)))


def test_one_capture_that_cannot_be_stored_is_set_aside_and_the_others_are_stored(db, tmp_path):
    spooled(tmp_path / "spool", {"cap_1": 1.0, "cap_2": 1e30, "cap_3": 3.0})  # no calendar has that date
    drainer = Drainer(db, tmp_path / "spool")
    assert drainer.turn()
    assert stored(db) == {"cap_1", "cap_3"}
    assert drainer.rejected == 1
    assert b'"id":"cap_2"' in (tmp_path / "spool" / "rejected" / "cap_2.json").read_bytes()


def test_a_database_that_takes_no_row_at_all_is_waited_for_and_nothing_is_set_aside(blank, tmp_path):
    migrate.upgrade(blank)
    name, root = blank.engine.url.database, tmp_path / "spool"
    faults = [("ALTER TABLE captures RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO captures")]
    if not blank.sqlite:
        read_only = f"ALTER DATABASE {name} SET default_transaction_read_only ="
        faults.append((f"{read_only} on", f"SET TRANSACTION READ WRITE; {read_only} off"))
        renamed = "ALTER TABLE captures RENAME COLUMN"
        faults.append((f"{renamed} error TO mistake", f"{renamed} mistake TO error"))
    drainer = Drainer(blank, root)
    for number, (breaks, mends) in enumerate(faults):
        _run(blank, breaks)
        spooled(root, {f"cap_{number}": 1.0})
        assert not drainer.turn()
        assert (drainer.rejected, (root / "rejected").exists()) == (0, False)
        assert drainer.database not in {"ok", "not tried yet"}
        _run(blank, mends)
        assert drainer.turn()
        assert f"cap_{number}" in stored(blank)


def test_what_can_neither_be_stored_nor_set_aside_stays_where_it_is(db, tmp_path):
    root = tmp_path / "spool"
    spooled(root, {"cap_1": 1.0, "cap_2": 1e30}).close()  # its process is dead
    (root / "rejected").touch()  # as good as a full disk
    drainer = Drainer(db, root)
    for _ in range(2):
        drainer.turn()
        assert (stored(db), drainer.rejected, len(Folder.all(root))) == ({"cap_1"}, 0, 1)
    (root / "rejected").unlink()
    drainer.turn()
    assert (stored(db), drainer.rejected, Folder.all(root)) == ({"cap_1"}, 1, [])
    assert (root / "rejected" / "cap_2.json").exists()


def test_a_sqlite_file_that_is_damaged_is_waited_for_too(home, db):
    file, spool = home / "stillroom.db", spooled(home / "spool", {"cap_1": 1.0})
    drainer = Drainer(db, home / "spool")
    assert drainer.turn()
    db.close()  # its -wal goes into the file
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    add(spool, "cap_2", 2.0)
    assert not drainer.turn()
    assert (drainer.database, drainer.rejected) == ("DatabaseError: database disk image is malformed", 0)
    db.close()
    file.write_bytes(whole)
    assert drainer.turn()
    assert stored(db) == {"cap_1", "cap_2"}


def _run(db: Database, statements: str) -> None:
    with db.begin() as session:
        for statement in statements.split("; "):
            session.execute(sa.text(statement))
    db.engine.dispose()  # sessions begin with the settings of their connection


def test_a_dead_folder_that_cannot_be_read_keeps_nobody_waiting_and_is_told_once(db, tmp_path, caplog):
    root = tmp_path / "spool"
    spooled(root, {"cap_own": 1.0})
    (root / "1-closed" / "lock").mkdir(parents=True)  # no file that can be opened
    for name in ("2-broken", "3-dead"):
        (root / name).mkdir()
        (root / name / "lock").touch()
    (root / "2-broken" / "00000001.seg").mkdir()
    (segment,) = spooled(tmp_path / "other", {"cap_dead": 1.0}).folder.segments()
    shutil.copy(segment, root / "3-dead" / "00000001.seg")
    drainer = Drainer(db, root)
    assert drainer.turn()
    assert stored(db) == {"cap_own", "cap_dead"}
    assert not (root / "3-dead").exists()
    assert drainer.turn()
    told = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert [str(root / name) in line for name, line in zip(("1-closed", "2-broken"), told, strict=True)] == [True, True]


def test_what_dead_processes_left_and_what_was_set_aside_counts_towards_the_limit(start, home):
    (home / "stillroom.db").mkdir(parents=True)  # SQLite cannot open a folder
    dead, rejected = home / "spool" / "9-dead", home / "spool" / "rejected"
    for folder in (dead, rejected):
        folder.mkdir(parents=True)
    (dead / "lock").touch()
    (dead / "00000001.seg").write_bytes(bytes(600))
    (rejected / "cap_0.json").write_bytes(bytes(600))
    proxy = start(spool_max_bytes=1300)
    assert proxy.ready()["spool_bytes"] == 1200
    proxy.chat()
    assert proxy.ready()["uncaptured"] == 1
    (home / "stillroom.db").rmdir()
    until(lambda: proxy.ready()["spool_bytes"] == 600)
    proxy.chat()
    assert proxy.ready()["uncaptured"] == 1


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


def test_postgresql_may_go_away_and_come_back_and_takes_what_sqlite_takes(start, teacher, postgres_blank):
    address = sa.make_url(postgres_blank)
    relay = Relay(str(next(Path(str(address.query["host"])).glob(".s.PGSQL.????"))))
    relay.shut()
    proxy = start(database_url=f"postgresql://postgres@127.0.0.1:{relay.port}/{address.database}")
    teacher.reply = json(completion("a\0b"))
    sent = [proxy.chat(chat("n\0l", metadata={"k\0": "\0", "deep": [[1.5]]}, user="u\0")).headers["x-stillroom-id"]]
    until(lambda: proxy.ready()["database"] not in {"ok", "not tried yet"})
    relay.open()
    until(lambda: proxy.ready()["database"] == "ok", 20)
    relay.shut()
    sent += [proxy.chat(chat(f"{n}", model=f"{n}" * 300)).headers["x-stillroom-id"] for n in range(3)]
    relay.open()
    db = Database(f"postgresql+psycopg://postgres@127.0.0.1:{relay.port}/{address.database}")

    until(lambda: sorted(stored(db)) == sent, 20)
    with db.read() as session:
        first = session.get(Capture, sent[0])
        assert first is not None
        assert (first.prompt_text, first.answer_text, first.meta) == ("nl", "ab", {"k": "", "deep": [[1.5]], "user": "u"})
        assert len(list(session.exec(select(Task)))) == 4
    assert proxy.ready()["rejected"] == 0
    proxy.stop()
    db.close()
