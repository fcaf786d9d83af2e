"""What is in the spool, and who may take it."""

import resource
import shutil
import threading

import pytest

from proxy import spool
from proxy.journal import NO_ROOM, STOPPED, Journal
from proxy.spool import Folder, NotKept, Record, Spool


def make(root, max_bytes=1_000_000, segment_bytes=1_000_000) -> tuple[Spool, Journal]:
    writer = Spool(Folder.make(root), max_bytes=max_bytes, segment_bytes=segment_bytes)
    return writer, Journal(writer.folder, writer)


def begin(writer: Spool, id: str, body: bytes = b"asked") -> None:
    writer.append({"kind": "begin", "id": id}, body)


def end(writer: Spool, id: str, body: bytes = b"answered") -> None:
    writer.append({"kind": "end", "id": id}, body, reserve=True)


def ids(batch) -> list[str]:
    return [logged.begin.meta["id"] for logged in batch]


def test_what_is_appended_is_read_again_from_any_offset(tmp_path):
    writer, _ = make(tmp_path)
    begin(writer, "a", b"\x00\xff")
    end(writer, "a", b"")
    (first, offset), (second, size) = spool.read(writer.active, 0)
    assert first == Record({"kind": "begin", "id": "a"}, b"\x00\xff")
    assert second == Record({"kind": "end", "id": "a"}, b"")
    assert list(spool.read(writer.active, offset)) == [(second, size)]
    assert size == writer.active.stat().st_size == writer.bytes


def test_a_torn_or_damaged_frame_ends_a_segment_and_takes_nothing_with_it(tmp_path):
    writer, _ = make(tmp_path)
    begin(writer, "a")
    whole = writer.active.stat().st_size
    end(writer, "a")
    data = writer.active.read_bytes()
    torn = tmp_path / "torn.seg"
    for size in range(whole, len(data)):
        torn.write_bytes(data[:size])
        assert [offset for _, offset in spool.read(torn, 0)] == [whole]
    for damaged in (data[:-1] + b"?", data[:whole] + bytes(100)):
        torn.write_bytes(damaged)
        assert [offset for _, offset in spool.read(torn, 0)] == [whole]


def test_a_batch_is_handed_out_until_it_is_stored_and_its_segments_go_when_nothing_needs_them(tmp_path):
    writer, journal = make(tmp_path, segment_bytes=1)  # a segment a frame
    for step in ("begin a", "begin b", "end a"):
        (begin if step[:-2] == "begin" else end)(writer, step[-1])
    assert ids(journal.next()) == ids(journal.next()) == ["a"]
    journal.done()
    assert len(writer.folder.segments()) == 2  # b's beginning, and the one that is written to
    end(writer, "b")
    assert (journal.next()[0].begin.body, journal.next()[0].end.body) == (b"asked", b"answered")
    journal.done()
    writer.rotate()
    assert journal.next() == []
    journal.done()
    assert writer.folder.segments() == []
    assert writer.bytes == 0


def test_only_a_dead_process_is_taken_over_and_what_it_left_open_is_handed_out_last(tmp_path):
    writer, _ = make(tmp_path)
    begin(writer, "a")
    begin(writer, "b")
    end(writer, "b")
    assert Folder.take_over(tmp_path, set()) == []
    shutil.copytree(writer.folder.path, tmp_path / "dead")
    (folder,) = Folder.take_over(tmp_path, set())
    assert Folder.take_over(tmp_path, set()) == []  # it has a new owner
    journal = Journal(folder, None)
    assert [(logged.begin.meta["id"], logged.end is None, logged.why) for logged in journal.next()] == [
        ("b", False, ""),
        ("a", True, STOPPED),
    ]
    journal.done()
    assert journal.exhausted
    folder.remove()
    assert not (tmp_path / "dead").exists()


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
    assert len(list(spool.read(writer.active, 0))) == 2


def test_a_full_disk_leaves_whole_frames_and_is_told(tmp_path):
    writer, journal = make(tmp_path)
    begin(writer, "a")
    begin(writer, "b")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (writer.bytes + 10, hard))  # the kernel then takes a part, as a full disk does
    try:
        with pytest.raises(NotKept, match="took 10 of"):
            end(writer, "a", bytes(1000))
        writer.abandon("a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    end(writer, "b")
    assert [(logged.begin.meta["id"], logged.why) for logged in journal.next()] == [("b", ""), ("a", NO_ROOM)]


def test_the_spool_is_for_its_owner_only(tmp_path):
    writer, _ = make(tmp_path / "home" / "spool")
    begin(writer, "a")
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    assert writer.active.stat().st_mode & 0o077 == 0
    assert writer.folder.path.stat().st_mode & 0o077 == 0


def test_nothing_is_lost_between_a_writer_that_rotates_and_a_reader_that_deletes(tmp_path):
    writer, journal = make(tmp_path, max_bytes=10**9, segment_bytes=300)
    seen: list[str] = []
    written = threading.Event()

    def drain() -> None:
        last = False
        while not last:
            last = written.is_set()
            while batch := journal.next():
                seen.extend(ids(batch))
                journal.done()
            journal.done()
            writer.rotate()

    reader = threading.Thread(target=drain)
    reader.start()
    for number in range(3000):
        begin(writer, str(number))
        end(writer, str(number))
    written.set()
    reader.join(30)
    assert seen == [str(number) for number in range(3000)]
    assert writer.bytes == 0
