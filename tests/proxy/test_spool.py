"""What is in the spool, and who may take it."""

import asyncio
import os
import resource
import shutil
import threading

import pytest

from proxy import spool
from proxy.journal import STOPPED, Journal
from proxy.spool import NO_ROOM, Durability, Folder, NotKept, Record, Spool, Waiting


def make(root, max_bytes=1_000_000, segment_bytes=1_000_000, **more) -> tuple[Spool, Journal]:
    writer = Spool(Folder.make(root), max_bytes=max_bytes, segment_bytes=segment_bytes, **{"grouped": False, **more})
    return writer, Journal(Folder(writer.folder.path))


def put(writer: Spool, meta, body: bytes, reserve: bool = False) -> None:
    """Append, and raise why it is not kept."""
    told: list[NotKept | None] = []
    writer.append(meta, body, told.append, reserve=reserve)
    (error,) = told
    if error is not None:
        raise error


def begin(writer: Spool, id: str, body: bytes = b"asked") -> None:
    put(writer, {"kind": "begin", "id": id, "at": 1.0}, body)


def end(writer: Spool, id: str, body: bytes = b"answered") -> None:
    put(writer, {"kind": "end", "id": id}, body, reserve=True)


def ids(batch) -> list[str]:
    return [logged.begin.meta["id"] for logged in batch]


def last(writer: Spool):
    return writer.folder.segments()[-1]


def test_what_is_appended_is_read_again_from_any_offset(tmp_path):
    writer, _ = make(tmp_path)
    put(writer, {"kind": "begin", "id": "a"}, b"\x00\xff")
    end(writer, "a", b"")
    (first, offset), (second, size) = spool.read(last(writer), 0)
    assert first == Record({"kind": "begin", "id": "a"}, b"\x00\xff")
    assert second == Record({"kind": "end", "id": "a"}, b"")
    assert list(spool.read(last(writer), offset)) == [(second, size)]
    assert size == last(writer).stat().st_size == writer.held


def test_a_torn_or_damaged_frame_ends_a_segment_and_takes_nothing_with_it(tmp_path):
    writer, _ = make(tmp_path)
    begin(writer, "a")
    whole = last(writer).stat().st_size
    end(writer, "a")
    data = last(writer).read_bytes()
    torn = tmp_path / "torn.seg"
    for size in range(whole, len(data)):
        torn.write_bytes(data[:size])
        assert [offset for _, offset in spool.read(torn, 0)] == [whole]
    for damaged in (data[:-1] + b"?", data[:whole] + bytes(100)):
        torn.write_bytes(damaged)
        assert [offset for _, offset in spool.read(torn, 0)] == [whole]


@pytest.mark.parametrize("durability", Durability)
def test_what_one_turn_of_the_event_loop_appends_is_written_at_once_and_told_when_it_is(tmp_path, durability):
    async def run() -> None:
        writer, journal = make(tmp_path, grouped=True, durability=durability)
        told: list[NotKept | None] = []
        for number in range(3):
            writer.append({"kind": "begin", "id": str(number), "at": 1.0}, b"", told.append)
        assert (told, writer.folder.segments()) == ([], [])
        kept = Waiting()
        writer.append({"kind": "end", "id": "1"}, b"", kept.then)
        await kept
        assert told == [None] * 3
        assert ids(journal.next()) == ["1"]
        writer.close()

    asyncio.run(run())


def test_with_disk_durability_nothing_is_told_before_the_disk_has_it_and_many_share_a_flush(tmp_path, monkeypatch):
    flushes, go = [], threading.Event()

    def slow(fd: int) -> None:
        flushes.append(fd)
        go.wait(5)

    async def run() -> None:
        writer, _ = make(tmp_path, grouped=True, durability=Durability.DISK)
        begin_told: list[NotKept | None] = []
        writer.append({"kind": "begin", "id": "first", "at": 1.0}, b"", begin_told.append)
        await asyncio.sleep(0.05)
        told: list[NotKept | None] = []
        for number in range(50):
            writer.append({"kind": "begin", "id": str(number), "at": 1.0}, b"", told.append)
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert (begin_told, told) == ([], [])
        go.set()
        while len(told) < 50:
            await asyncio.sleep(0.01)
        assert (begin_told, told, len(flushes)) == ([None], [None] * 50, 5)  # the names of three folders, the first, all the others
        writer.close()

    monkeypatch.setattr(os, "fdatasync", lambda fd: flushes.append(fd) if len(flushes) < 3 else slow(fd))
    asyncio.run(run())


def test_a_disk_that_does_not_take_it_is_told(tmp_path, monkeypatch):
    writer, _ = make(tmp_path, durability=Durability.DISK)
    begin(writer, "a")

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(NotKept, match="Input/output error"):
        end(writer, "a")
    assert writer.full is not None


def test_a_batch_is_handed_out_until_it_is_stored_and_its_segments_go_when_nothing_needs_them(tmp_path):
    writer, journal = make(tmp_path, segment_bytes=1)  # a segment a frame
    for step in ("begin a", "begin b", "end a"):
        (begin if step[:-2] == "begin" else end)(writer, step[-1])
    assert ids(journal.next()) == ids(journal.next()) == ["a"]
    assert journal.waiting_since == 1.0
    journal.done()
    assert len(writer.folder.segments()) == 2  # b's beginning, and the one that is written to
    end(writer, "b")
    assert (journal.next()[0].begin.body, journal.next()[0].end.body) == (b"asked", b"answered")
    journal.done()
    writer._appended = 0.0  # long ago
    writer.tick()
    assert journal.next() == []
    journal.done()
    writer.tick()
    assert writer.held == 0


def test_a_beginning_that_is_too_large_to_be_kept_in_memory_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.journal.KEPT_BYTES", 5)
    writer, journal = make(tmp_path)
    begin(writer, "a", b"12345")
    begin(writer, "b", b"asked for")
    assert journal.next() == []
    end(writer, "b")
    end(writer, "a")
    assert [logged.begin.body for logged in journal.next()] == [b"asked for", b"12345"]


def test_only_a_dead_process_is_taken_over_and_what_it_left_open_is_handed_out_last(tmp_path):
    writer, journal = make(tmp_path)
    begin(writer, "a")
    begin(writer, "b")
    end(writer, "b")
    assert ids(journal.next()) == ["b"]  # the living one's ended exchanges
    shutil.copytree(writer.folder.path, tmp_path / "9-dead")
    ours, folder = Folder.all(tmp_path)
    assert (ours.path, ours.take_over(), folder.take_over(), folder.take_over()) == (writer.folder.path, False, True, True)
    assert not Folder(folder.path).take_over()  # it has a new owner
    dead = Journal(folder)
    assert [(logged.begin.meta["id"], logged.end is None, logged.why) for logged in dead.next()] == [
        ("b", False, ""),
        ("a", True, STOPPED),
    ]
    dead.done()
    assert dead.exhausted
    folder.remove()
    assert not (tmp_path / "9-dead").exists()


def test_a_writer_that_is_closed_leaves_its_folder_to_others(tmp_path):
    writer, journal = make(tmp_path)
    begin(writer, "a")
    assert (journal.next(), journal.exhausted) == ([], False)
    writer.close()
    assert ids(journal.next()) == ["a"]
    assert journal.exhausted


def test_an_end_whose_beginning_is_gone_was_stored_before(tmp_path):
    writer, journal = make(tmp_path)
    end(writer, "a")
    assert journal.next() == []


def test_a_full_spool_takes_no_new_exchange_and_lets_those_end_that_have_begun(tmp_path):
    writer, _ = make(tmp_path, max_bytes=100)
    begin(writer, "a")
    with pytest.raises(NotKept, match="STILLROOM_SPOOL_MAX_BYTES"):
        begin(writer, "b", bytes(100))
    end(writer, "a", bytes(100))
    assert len(list(spool.read(last(writer), 0))) == 2


def test_what_others_have_in_the_spool_counts(tmp_path):
    (tmp_path / "rejected").mkdir()
    (tmp_path / "rejected" / "cap_0.json").write_bytes(bytes(600))
    writer, _ = make(tmp_path, max_bytes=650)
    with pytest.raises(NotKept, match="holds 600 bytes"):
        begin(writer, "a", bytes(100))
    (tmp_path / "rejected" / "cap_0.json").unlink()
    writer.tick()
    begin(writer, "a", bytes(100))


def test_a_full_disk_leaves_whole_frames_is_told_and_what_could_not_end_ends_when_there_is_room(tmp_path):
    writer, journal = make(tmp_path)
    begin(writer, "a")
    begin(writer, "b")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (writer.held + 10, hard))  # the kernel then takes a part, as a full disk does
    try:
        with pytest.raises(NotKept, match="took 10 of"):
            end(writer, "a", bytes(1000))
        writer.abandon("a")
        writer.tick()  # no room yet, not even for that
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    end(writer, "b")
    writer.tick()
    assert [(logged.begin.meta["id"], logged.end.meta.get("error")) for logged in journal.next()] == [("b", None), ("a", NO_ROOM)]
    assert writer.full is None


def test_the_spool_is_for_its_owner_only(tmp_path):
    writer, _ = make(tmp_path / "home" / "spool")
    begin(writer, "a")
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    assert last(writer).stat().st_mode & 0o077 == 0
    assert writer.folder.path.stat().st_mode & 0o077 == 0


def test_nothing_is_lost_between_a_writer_that_rotates_and_a_reader_that_deletes(tmp_path):
    writer, journal = make(tmp_path, max_bytes=10**9, segment_bytes=300)
    seen: list[str] = []
    written = threading.Event()

    def drain() -> None:
        final = False
        while not final:
            final = written.is_set()
            while batch := journal.next():
                seen.extend(ids(batch))
                journal.done()
            journal.done()

    reader = threading.Thread(target=drain)
    reader.start()
    for number in range(3000):
        begin(writer, str(number))
        end(writer, str(number))
    writer.close()
    written.set()
    reader.join(30)
    assert seen == [str(number) for number in range(3000)]
    assert journal.exhausted
    assert writer.folder.segments() == []
