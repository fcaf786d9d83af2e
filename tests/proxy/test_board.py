"""Several processes, killed and started again, and what /metrics says of them: read by prometheus_client's own parsers."""

import fcntl
import math
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from proxy.board import Board
from proxy.metrics import MAX_TASKS, METRICS, OTHER, Counters

CHAT = "/v1/chat/completions"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.2,*/*;q=0.1"
)

#: Counts one exchange after the other and says so once it is on the board; now and then it shows the sum of all.
WORKER = """
import sys
from pathlib import Path
from proxy.board import Board
from proxy.metrics import Counters
counters = Counters()
board = Board(Path(sys.argv[1]), counters.snapshot)
number = 0
while True:
    number += 1
    counters.exchange(f"task-{number % 7}", "teacher", "/v1/chat/completions", 200, 0.1, 0.05)
    board.publish()
    print("counted", number, flush=True)
    if number % 5 == 0:
        shown = [line for line in board.render()[0].decode().splitlines() if line.startswith("stillroom_requests_total{")]
        print("shown", sum(int(line.rpartition(" ")[2]) for line in shown), flush=True)
"""

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(board: Board, accept: str | None = None) -> Series:
    """What /metrics says, by sample and labels."""
    body, kind = board.render(accept)
    parse = parse_openmetrics if b"openmetrics" in kind else parse_plain
    return {(s.name, frozenset(s.labels.items())): s.value for family in parse(body.decode()) for s in family.samples}


def total(series: Series, name: str = "stillroom_requests_total") -> float:
    return sum(value for (sample, _), value in series.items() if sample == name)


def counted(series: Series) -> Series:
    """What must never go down."""
    return {key: value for key, value in series.items() if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}


def gone_down(before: Series, after: Series) -> Series:
    return {key: value for key, value in counted(before).items() if after.get(key, -math.inf) < value - 1e-9}


def exchanges(number: int, task: str = "sort") -> Counters:
    counters = Counters()
    for _ in range(number):
        counters.exchange(task, "teacher", CHAT, 200, 0.1, 0.05)
    return counters


class Worker:
    """A process of its own."""

    def __init__(self, folder: Path) -> None:
        self.counted = 0  #: what it has said that it has published
        self.shown = 0  #: the largest sum it has shown
        self._process = subprocess.Popen([sys.executable, "-c", WORKER, str(folder)], stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                what, _, number = line.partition(" ")
                if what == "counted" and number.endswith("\n"):
                    self.counted = int(number)
                elif what == "shown" and number.endswith("\n"):
                    self.shown = max(self.shown, int(number))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics"


def test_workers_that_are_killed_and_started_again_lose_nothing_and_no_series_ever_goes_down(folder: Path) -> None:
    rng = random.Random(7)
    own = exchanges(3)
    board = Board(folder, own.snapshot)
    workers = [Worker(folder) for _ in range(3)]
    dead: list[Worker] = []
    before = read(board)
    for _ in range(15):
        deadline = time.monotonic() + rng.uniform(0.05, 0.4)
        while time.monotonic() < deadline:
            after = read(board)
            assert not gone_down(before, after)
            before = after
        victim = rng.randrange(len(workers))
        workers[victim].kill()
        dead.append(workers[victim])
        workers[victim] = Worker(folder)
    while not all(worker.counted > 10 for worker in workers):
        time.sleep(0.01)
    for worker in workers:
        worker.kill()
    dead += workers
    after = read(board)
    assert not gone_down(before, after)
    said = sum(worker.counted for worker in dead)
    assert said > 300
    assert said + 3 <= total(after) <= said + 3 + len(dead)  # each may have been killed after it published and before it said so
    assert total(after) >= max(worker.shown for worker in dead)
    assert total(after, "stillroom_request_seconds_count") == total(after)
    assert after["stillroom_processes", frozenset()] == 1
    assert len(list(folder.iterdir())) == 4  # the lock, what is retained, and this process's two
    board.close()


def test_what_has_been_shown_survives_the_process_that_showed_it(folder: Path) -> None:
    board = Board(folder, Counters().snapshot)
    counters = exchanges(5)
    shower = Board(folder, counters.snapshot)
    assert total(read(shower)) == 5  # nobody has called publish
    shower.close()
    assert total(read(board)) == 5


def test_all_processes_show_the_same_sum(folder: Path) -> None:
    boards = [Board(folder, exchanges(number).snapshot) for number in (1, 10, 100)]
    for board in boards:
        board.publish()
    assert [total(read(board, accept)) for board in boards for accept in (None, PROMETHEUS)] == [111] * 6


def test_counts_of_the_dead_stay_and_what_they_measured_goes(folder: Path) -> None:
    staying, leaving = exchanges(1), exchanges(2)
    staying.in_flight, leaving.in_flight, leaving.streams = 1, 5, 3
    staying.breakers({"http://e:1": "closed"})
    leaving.breakers({"http://e:1": "open", "http://e:2": "open"})
    leaving.spool(4, 400, time.time() - 60)
    leaving.database(False)
    board, other = Board(folder, staying.snapshot), Board(folder, leaving.snapshot)
    other.publish()
    both = read(board)
    assert both["stillroom_in_flight", frozenset()] == 6
    assert both["stillroom_breaker_state", frozenset({("engine", "http://e:1")})] == 2
    assert 60 <= both["stillroom_spool_age_seconds", frozenset()] < 70
    assert (both["stillroom_spool_records", frozenset()], both["stillroom_spool_bytes", frozenset()]) == (4, 400)
    assert (both["stillroom_database_up", frozenset()], both["stillroom_processes", frozenset()]) == (0, 2)
    other.close()
    alone = read(board)
    assert total(alone) == 3
    assert alone["stillroom_in_flight", frozenset()] == 1
    assert alone["stillroom_breaker_state", frozenset({("engine", "http://e:1")})] == 0
    assert {name for name, _ in both} - {name for name, _ in alone} == {
        *("stillroom_spool_records", "stillroom_spool_bytes", "stillroom_spool_age_seconds", "stillroom_database_up")
    }


def test_the_spools_age_grows_although_nobody_publishes(folder: Path) -> None:
    counters = Counters()
    counters.spool(1, 10, time.time())
    board = Board(folder, counters.snapshot)
    first = read(board)["stillroom_spool_age_seconds", frozenset()]
    time.sleep(0.05)
    assert read(board)["stillroom_spool_age_seconds", frozenset()] >= first + 0.05
    counters.spool(0, 0, None)
    assert read(board)["stillroom_spool_age_seconds", frozenset()] == 0


def test_a_proxy_that_starts_where_none_lives_begins_at_zero_and_one_where_one_lives_goes_on(folder: Path) -> None:
    first = Board(folder, exchanges(5).snapshot)
    first.publish()
    second = Board(folder, exchanges(7).snapshot)
    first.close()
    assert total(read(second)) == 12
    second.close()
    third = Board(folder, exchanges(1).snapshot)
    assert total(read(third)) == 1
    assert len(list(folder.iterdir())) == 4


def test_one_who_dies_between_keeping_a_dead_ones_counts_and_removing_its_files_counts_nothing_twice(
    folder: Path, tmp_path: Path
) -> None:
    board, dead = Board(folder, Counters().snapshot), Board(folder, exchanges(9).snapshot)
    dead.close()
    shutil.copytree(folder, tmp_path / "before")
    assert total(read(board)) == 9
    for path in (tmp_path / "before").glob("*-*"):
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    assert len(list(folder.glob("*-*"))) == 4
    assert total(read(board)) == 9
    assert len(list(folder.glob("*-*"))) == 2
    assert total(read(board)) == 9


def test_there_are_labels_for_a_thousand_tasks_however_many_processes_come_and_go(folder: Path) -> None:
    board = Board(folder, Counters().snapshot)
    before = read(board)
    for generation in range(3):
        counters = Counters()
        for number in range(600):
            counters.stored(f"g{generation}-{number}", "teacher", None, None, None, None)
        other = Board(folder, counters.snapshot)
        for step in (other.publish, other.close):
            step()
            after = read(board)
            assert not gone_down(before, after)
            before = after
    tasks = {dict(labels)["task"] for name, labels in before if name == "stillroom_stored_total"}
    assert (len(tasks), OTHER in tasks, total(before, "stillroom_stored_total")) == (MAX_TASKS + 1, True, 1800)


def test_where_nothing_can_be_written_it_is_logged_once_and_the_own_counts_are_shown(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counters = exchanges(2)
    board = Board(folder, counters.snapshot)
    shutil.rmtree(folder)
    for _ in range(3):
        counters.uncaptured()
        board.publish()
    assert total(read(board)) == 2
    assert [record.message for record in caplog.records] == [
        f"counts cannot be written to {folder}, other processes do not see them: No such file or directory"
    ]


def test_a_file_that_cannot_be_read_costs_its_own_counts_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    board, other = Board(folder, exchanges(2).snapshot), Board(folder, exchanges(3).snapshot)
    other.publish()
    board.publish()
    next(path for path in folder.glob("*-*.json") if b",3]" in path.read_bytes()).write_bytes(b'{"stillr')
    assert total(read(board)) == 2
    assert "cannot be read" in caplog.text


def test_many_threads_may_ask_while_others_publish(folder: Path) -> None:
    counters = exchanges(1)
    board, other = Board(folder, counters.snapshot), Board(folder, exchanges(10).snapshot)
    other.publish()
    sums: list[float] = []

    def ask() -> None:
        for _ in range(10):
            sums.append(total(read(board)))
            read(other)
            board.publish()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [11] * 40


def test_while_one_process_sums_up_the_others_wait(folder: Path) -> None:
    board = Board(folder, exchanges(1).snapshot)
    with (folder / "lock").open("rb+") as other:  # a file opened anew counts as another process's
        fcntl.flock(other, fcntl.LOCK_EX)
        asking = threading.Thread(target=board.render)
        asking.start()
        asking.join(0.2)
        assert asking.is_alive()
        board.publish()  # what a worker does once a second waits for nobody
    asking.join(5)
    assert not asking.is_alive()


def test_nobody_else_may_read_the_files(folder: Path) -> None:
    board = Board(folder, exchanges(1).snapshot)
    Board(folder, exchanges(1).snapshot).close()
    board.render()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_file_is_written_only_when_something_has_changed(folder: Path) -> None:
    counters = exchanges(1)
    board = Board(folder, counters.snapshot)
    board.publish()
    file = next(folder.glob("*-*.json"))
    inode = file.stat().st_ino
    board.publish()
    assert file.stat().st_ino == inode
    counters.uncaptured()
    board.publish()
    assert file.stat().st_ino != inode


@pytest.mark.parametrize("accept", [None, PROMETHEUS])
@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "two\nlines", "a,b={c}", "naïve ✓", "\\n", ""])
def test_a_tasks_name_comes_out_as_it_went_in(folder: Path, name: str, accept: str | None) -> None:
    series = read(Board(folder, exchanges(4, task=name).snapshot), accept)
    labels = frozenset({("task", name), ("server", "teacher"), ("endpoint", CHAT), ("code", "200")})
    assert series["stillroom_requests_total", labels] == 4


def families(body: bytes, kind: bytes) -> dict[str, Metric]:
    parse = parse_openmetrics if b"openmetrics" in kind else parse_plain
    return {family.name: family for family in parse(body.decode())}


def test_both_formats_have_every_metric_with_its_type_and_help_and_the_same_samples(folder: Path) -> None:
    counters = exchanges(3)
    counters.exchange("sort", "student", CHAT, 200, 700.0, None, "student: it answered 500")
    counters.stored("sort", "teacher", None, 12_345_678_901, 2, 1e-7)
    board = Board(folder, counters.snapshot)
    plain, openmetrics = families(*board.render()), families(*board.render(PROMETHEUS))
    assert list(plain) == list(openmetrics) == [metric.name.removesuffix("_total") for metric in METRICS]
    for metric in METRICS:
        family = plain[metric.name.removesuffix("_total")]
        assert family.documentation == metric.help
        assert family.type == {"counter": "counter", "histogram": "histogram"}.get(metric.kind, "gauge")
        assert family == openmetrics[family.name]
    (cost,) = plain["stillroom_cost_dollars"].samples
    assert cost.value == 1e-7
    infinite = [
        s for s in plain["stillroom_request_seconds"].samples if s.labels.get("le") == "+Inf" and s.labels["server"] == "student"
    ]
    assert [s.value for s in infinite] == [1]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, b"text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", b"text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=banana", b"application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (PROMETHEUS, b"application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_the_format_is_the_one_that_is_asked_for(folder: Path, accept: str | None, kind: bytes) -> None:
    body, found = Board(folder, exchanges(1).snapshot).render(accept)
    assert found == kind
    assert body.endswith(b"\n# EOF\n") == (b"openmetrics" in kind)


def test_two_hundred_tasks_of_five_processes_are_shown_in_well_under_the_time_of_a_scrape(folder: Path) -> None:
    boards = []
    for _ in range(5):
        counters = Counters()
        for number in range(200):
            counters.exchange(f"task-{number}", "teacher", CHAT, 200, 0.1, 0.05, "student: the breaker is open")
        boards.append(Board(folder, counters.snapshot))
        boards[-1].publish()
    taken = []
    for _ in range(7):
        started = time.perf_counter()
        boards[0].render()
        taken.append(time.perf_counter() - started)
    assert min(taken) < 0.05
