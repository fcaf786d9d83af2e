"""What is counted: every metric with its meaning, and the counting itself, made for the path of a request.

prometheus_client's own counters cost several microseconds each and its writer ten a line; the whole request has eighty.
So counting is a dictionary look-up and an addition here, and `proxy.board` adds the processes up and writes the text.

Nothing here is locked: one thread counts (the event loop; in the drainer's process, the drainer), any thread takes snapshots.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from store import chat

MAX_TASKS = 1000  # with a label of their own; a label set is 40 lines of /metrics, and clients can make up tasks
OTHER = "other"  #: the label of what has none of its own

#: Upper bounds in seconds. A student's first byte takes some 10 ms, a teacher's 0.2 to 5 s, whole answers up to minutes, and at
#: 600 s (STILLROOM_READ_TIMEOUT) a silent teacher is given up. Steps of 2 to 3: a quantile read off them is wrong by no more.
#: The same for whole answers and first bytes, so that the two can be laid over each other.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

#: What one process knows: by metric, label values and what was counted under them. A histogram's value is its count in each
#: bucket, the last one without bound, and behind them the sum.
Snapshot = dict[str, list[tuple[list[str], Any]]]
Histogram = list[float]


class Kind(StrEnum):
    """How the values of several processes make one, and what is left of a dead one's."""

    COUNTER = "counter"  #: added up; stays
    HISTOGRAM = "histogram"  #: added up; stays
    SUM = "sum"  #: a gauge, added up; vanishes
    MAX = "max"  #: a gauge, the largest counts; vanishes
    MIN = "min"  #: a gauge, the smallest counts; vanishes
    AGE = "age"  #: a gauge: a moment in Unix time or 0 for none, shown as the seconds since the earliest; vanishes


@dataclass(frozen=True)
class Metric:
    """A family of /metrics."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


METRICS = (
    Metric(
        "stillroom_requests_total",
        Kind.COUNTER,
        "Completions answered, by HTTP status as the client got it; 499: the client left before there was one.",
        ("task", "server", "endpoint", "code"),
    ),
    Metric(
        "stillroom_request_seconds",
        Kind.HISTOGRAM,
        "Seconds from a completion's request to the last byte of its answer.",
        ("task", "server"),
    ),
    Metric(
        "stillroom_first_byte_seconds",
        Kind.HISTOGRAM,
        "Seconds from a completion's request to the first byte of its answer's body.",
        ("task", "server"),
    ),
    Metric(
        "stillroom_fallbacks_total",
        Kind.COUNTER,
        "Completions that a student was wished or routed for and did not answer, and why.",
        ("task", "reason"),
    ),
    Metric(
        "stillroom_passthrough_total",
        Kind.COUNTER,
        "Other requests under /v1, passed through and not captured, by first path segment and HTTP status.",
        ("family", "code"),
    ),
    Metric("stillroom_refused_total", Kind.COUNTER, "Error answers of the proxy's own, by the error's code.", ("code",)),
    Metric("stillroom_uncaptured_total", Kind.COUNTER, "Exchanges answered and not kept: the spool or its disk was full."),
    Metric("stillroom_in_flight", Kind.SUM, "Requests being answered now, streams among them."),
    Metric("stillroom_streams_in_flight", Kind.SUM, "Streams being answered now."),
    Metric("stillroom_breaker_state", Kind.MAX, "0 closed, 1 half-open, 2 open; the worst of all workers.", ("engine",)),
    Metric("stillroom_stored_total", Kind.COUNTER, "Captures written to the database.", ("task", "server")),
    Metric("stillroom_rejected_total", Kind.COUNTER, "Captures that cannot be stored, set aside in spool/rejected."),
    Metric(
        "stillroom_tokens_total",
        Kind.COUNTER,
        "Tokens of stored captures, as the answers say; kind is prompt or completion.",
        ("task", "server", "kind"),
    ),
    Metric("stillroom_saved_tokens_total", Kind.COUNTER, "Tokens that a student answered and no teacher billed.", ("task", "kind")),
    Metric("stillroom_cost_dollars_total", Kind.COUNTER, "US dollars that stored captures cost, by teacher.", ("task", "teacher")),
    Metric(
        "stillroom_saved_dollars_total", Kind.COUNTER, "US dollars a teacher would have cost where a student answered.", ("task",)
    ),
    Metric("stillroom_spool_records", Kind.SUM, "Exchanges in the spool that are not in the database yet."),
    Metric("stillroom_spool_bytes", Kind.SUM, "Bytes of the spool."),
    Metric("stillroom_spool_age_seconds", Kind.AGE, "Seconds that the oldest exchange in the spool has waited; 0: there is none."),
    Metric("stillroom_database_up", Kind.MIN, "1: the database took what it was last given."),
    Metric("stillroom_processes", Kind.SUM, "Processes of the proxy that are alive and count, the drainer's among them."),
)

BREAKER = {"closed": 0, "half-open": 1, "open": 2}
FAMILIES = frozenset(
    {
        *("assistants", "audio", "batches", "chat", "chatkit", "completions", "containers", "conversations", "embeddings", "evals"),
        *("files", "fine_tuning", "images", "models", "moderations", "organization", "realtime", "responses", "threads", "uploads"),
        *("vector_stores", "videos"),
    }
)
_CODES = frozenset(HTTPStatus) | {499, 529}  # 529: some teachers' word for overloaded

#: Why a student did not answer, as `proxy.routing` and `proxy.student` word it; the first that is found in the text counts.
REASONS = (
    ("breaker is open", "breaker"),
    ("no answer within", "timeout"),
    ("silent for too long", "timeout"),
    ("cannot connect to", "unreachable"),
    ("the connection to", "broken"),
    ("is no HTTP", "broken"),
    ("sent a head of more", "broken"),
    ("its stream ended", "broken"),
    ("an event of its stream", "unreadable"),
    ("its answer cannot be used", "unreadable"),
    ("it answered ", "status"),
    ("its finish_reason is", "unfit"),
    ("is not the JSON that response_format asks for", "unfit"),
    ("stillroom failed on it", "internal"),
    ("the task has no student", "no_student"),
    ("more than one choice", "beyond"),
    ("which the student is not given", "beyond"),
    ("no engine has", "no_engine"),
    ("has not accepted this key", "unknown_key"),
)


@lru_cache(maxsize=512)
def reason(fallback: str) -> str:
    """The label of a fallback's text."""
    return next((label for words, label in REASONS if words in fallback), OTHER)


class _Cell:
    """Where the exchanges with one set of labels are counted; those that differ in endpoint or code only share their histograms."""

    __slots__ = ("count", "first_byte", "seconds")

    def __init__(self, seconds: Histogram, first_byte: Histogram) -> None:
        self.count = 0
        self.seconds = seconds
        self.first_byte = first_byte


class Counters:
    """What one process counts. A worker uses the first part, the drainer the second."""

    def __init__(self) -> None:
        self.in_flight = 0  #: requests being answered now
        self.streams = 0  #: streams among them
        self._known: dict[tuple[str, str, str, int], _Cell] = {}  # by what `exchange` is called with, where that is what is shown
        self._cells: dict[tuple[str, str, str, str], _Cell] = {}
        self._seconds: dict[tuple[str, str], Histogram] = {}
        self._first_byte: dict[tuple[str, str], Histogram] = {}
        self._tasks: set[str] = set()
        self._codes: set[str] = set()
        self._counts: dict[str, dict[tuple[str, ...], float]] = {
            m.name: defaultdict(int) for m in METRICS if m.kind is Kind.COUNTER
        }
        self._fallbacks = self._counts["stillroom_fallbacks_total"]
        self._gauges: dict[str, list[tuple[list[str], float]]] = {}
        for name in ("stillroom_uncaptured_total", "stillroom_rejected_total"):
            self._counts[name][()] = 0  # there from the start: what springs from nothing to 1 no `increase()` sees

    def exchange(
        self,
        task: str,
        server: str,
        endpoint: str,
        code: int,
        seconds: float,
        first_byte_seconds: float | None,
        fallback: str | None = None,
    ) -> None:
        """A completion has been answered by `server`, teacher or student; `fallback`: why not by a student, as the capture says."""
        cell = self._known.get((task, server, endpoint, code)) or self._find(task, server, endpoint, code)
        cell.count += 1
        buckets = cell.seconds
        buckets[bisect_left(BOUNDS, seconds)] += 1
        buckets[-1] += seconds
        if first_byte_seconds is not None:
            buckets = cell.first_byte
            buckets[bisect_left(BOUNDS, first_byte_seconds)] += 1
            buckets[-1] += first_byte_seconds
        if fallback:
            self._fallbacks[self._task(task), reason(fallback)] += 1

    def passed(self, path: str, code: int) -> None:
        """A request to another path, as /v1/embeddings, has been passed through."""
        family = path.removeprefix("/v1/").partition("/")[0].partition("?")[0]
        self._counts["stillroom_passthrough_total"][family if family in FAMILIES else OTHER, _code(code)] += 1

    def refused(self, code: str) -> None:
        """The proxy has answered with an error of its own: `Refusal.code`."""
        if code not in self._codes:
            code = code if len(self._codes) < 100 else OTHER
            self._codes.add(code)
        self._counts["stillroom_refused_total"][(code,)] += 1

    def uncaptured(self) -> None:
        """An exchange has been answered and could not be kept."""
        self._counts["stillroom_uncaptured_total"][()] += 1

    def breakers(self, states: Mapping[str, str]) -> None:
        """The breakers' states by engine URL, as of now: time alone changes them, so before each snapshot."""
        self._gauges["stillroom_breaker_state"] = [([_address(url)], BREAKER[state]) for url, state in states.items()]

    def stored(
        self,
        task: str,
        server: str,
        teacher: str | None,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        cost_usd: float | None,
    ) -> None:
        """A capture is in the database. `cost_usd`: the teacher's price of these tokens, whoever answered; `teacher`: its name."""
        task, server = self._task(task), str(server)
        self._counts["stillroom_stored_total"][task, server] += 1
        student = server == "student"
        for kind, tokens in (("prompt", prompt_tokens), ("completion", completion_tokens)):
            if tokens:
                self._counts["stillroom_tokens_total"][task, server, kind] += tokens
                if student:
                    self._counts["stillroom_saved_tokens_total"][task, kind] += tokens
        if cost_usd and student:
            self._counts["stillroom_saved_dollars_total"][(task,)] += cost_usd
        elif cost_usd:
            self._counts["stillroom_cost_dollars_total"][task, teacher or "default"] += cost_usd

    def rejected(self) -> None:
        """A capture cannot be stored and has been set aside."""
        self._counts["stillroom_rejected_total"][()] += 1

    def spool(self, records: int, size: int, oldest: float | None) -> None:
        """How much waits for the database: exchanges, bytes, and the Unix time of the oldest (None: there is none).

        A moment and not an age, so that the age shown grows also where the drainer is stuck.
        """
        self._gauges["stillroom_spool_records"] = [([], records)]
        self._gauges["stillroom_spool_bytes"] = [([], size)]
        self._gauges["stillroom_spool_age_seconds"] = [([], oldest or 0.0)]

    def database(self, up: bool) -> None:
        """Whether the database took what it was last given."""
        self._gauges["stillroom_database_up"] = [([], int(up))]

    def snapshot(self) -> Snapshot:
        """All of it, as JSON can hold it. From any thread."""
        found: Snapshot = {name: _listed(counts.items()) for name, counts in self._counts.items()}
        found["stillroom_requests_total"] = _listed((labels, cell.count) for labels, cell in list(self._cells.items()))
        for name, histograms in (("stillroom_request_seconds", self._seconds), ("stillroom_first_byte_seconds", self._first_byte)):
            found[name] = _listed((labels, list(buckets)) for labels, buckets in list(histograms.items()))
        found |= {name: list(values) for name, values in list(self._gauges.items())}
        found["stillroom_processes"] = [([], 1)]
        found["stillroom_in_flight"] = [([], self.in_flight)]
        found["stillroom_streams_in_flight"] = [([], self.streams)]
        return {name: values for name, values in found.items() if values}

    def _find(self, task: str, server: str, endpoint: str, code: int) -> _Cell:
        """The cell for labels that `_known` has not: new ones, or such as are shown under others."""
        shown = (self._task(task), str(server), endpoint if endpoint in chat.ENDPOINTS else OTHER, _code(code))
        cell = self._cells.get(shown)
        if cell is None:
            seconds = self._seconds.setdefault(shown[:2], [0] * (len(BOUNDS) + 2))
            first_byte = self._first_byte.setdefault(shown[:2], [0] * (len(BOUNDS) + 2))
            cell = self._cells[shown] = _Cell(seconds, first_byte)
        if shown == (task, server, endpoint, str(code)):
            self._known[task, shown[1], endpoint, code] = cell
        return cell

    def _task(self, task: str) -> str:
        if task not in self._tasks:
            if len(self._tasks) >= MAX_TASKS:
                return OTHER
            self._tasks.add(task)
        return task


def _listed(items: Iterable[tuple[tuple[str, ...], Any]]) -> list[tuple[list[str], Any]]:
    return [(list(labels), value) for labels, value in list(items)]


def _code(code: int) -> str:
    """A status as a label; one that nobody has defined becomes its class, so that a teacher cannot make up labels without end."""
    return str(int(code)) if code in _CODES else f"{code // 100}xx" if 100 <= code < 1000 else OTHER


def _address(url: str) -> str:
    """A URL without the user and password that may be in it."""
    return re.sub(r"//[^/@]*@", "//", url)
