"""What stored captures take, packed in this way and that: `python -m tests.bench.bench_bodies [RECORDING.jsonl.gz ...]`.

For the demo's tickets (answered by bench-proxy's 1.5 KB and, in a second table, by streams of a hundred chunks) and for recordings
as the replayed teacher reads them: bytes of a capture's bodies and texts, as a share of request and response, and microseconds of
CPU to pack and to unpack one. Below each table is what the whole database grows by, kinds, dictionaries, ids and indexes included,
when the exchanges go through the proxy's writer, and what that costs a row.
"""

import argparse
import gzip
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import orjson
import zstandard
from rich.console import Console
from rich.table import Table

from admin.teachers import tickets
from proxy import rows
from proxy.insert import Writer
from proxy.journal import Logged
from proxy.spool import Record
from store import blobs, ids, migrate, packing, shared
from store.capture import Capture
from store.session import Database

WORDS = "The quick brown fox jumps over the lazy dog while a proxy records each and every answer. "
PAGES = ("page_count", "freelist_count", "page_size")
BATCH = 100

Exchange = tuple[bytes, bytes, bool]  #: request, response, stream
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--rows", type=int, default=2000, help="of each source")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sources: dict[str, list[Exchange]] = {
        "tickets": list(_tickets(options.rows, options.seed)),
        "ticket streams": list(_streams(options.rows // 4, options.seed)),
    }
    for file in options.files:
        sources[file.name.split(".")[0]] = _recorded(file, options.rows, options.seed)
    for name, exchanges in sources.items():
        logged = [_logged(number, *exchange) for number, exchange in enumerate(exchanges)]
        captures = [rows.build(each)[1] for each in logged]
        raw = sum(len(capture.request) + len(capture.response) for capture in captures) / len(captures)
        Console(width=120).print(_table(f"{name}: {len(captures):,} exchanges of {raw:,.0f} bytes", captures))
        grown, figures = _through_the_writer(logged)
        stored = {"source": name, "stored_vs_raw": round(grown / raw / len(captures), 4)}
        print(json.dumps({**stored, **{figure: round(value, 1) for figure, value in figures.items()}}))


def _table(title: str, captures: Sequence[Capture]) -> Table:
    """All variants on the captures behind those of which dictionaries are made."""
    learned, tested = captures[: packing.SAMPLES], [capture.parts() for capture in captures[packing.SAMPLES :]]
    raw = sum(len(parts[0]) + len(parts[1]) for parts in tested)
    shown = Table(
        "packed by", "bytes a capture", "of the raw bytes", "µs to pack", "µs to unpack", "dictionary", "ms to make", title=title
    )
    for name, make in VARIANTS.items():
        began = time.process_time()
        dictionary = make(learned)
        made = time.process_time() - began
        pack = dictionary.pack if dictionary else blobs.pack
        content = dictionary.content if dictionary else None
        frames, packing_us = _timed(lambda pack=pack: [pack(parts) for parts in tested])
        unpacked, unpacking_us = _timed(lambda frames=frames, content=content: [blobs.unpack(frame, content) for frame in frames])
        assert unpacked == tested
        size = sum(map(len, frames))
        shown.add_row(
            name, f"{size / len(tested):,.1f}", f"{size / raw:.2%}", f"{packing_us:.1f}", f"{unpacking_us:.1f}",
            f"{len(content or b''):,}", f"{made * 1e3:.0f}",
        )  # fmt: skip
    return shown


def _timed(work: Callable[[], list[T]]) -> tuple[list[T], float]:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        done = work()
        best = min(best, time.process_time() - began)
    return done, best / len(done) * 1e6


def _trained(captures: Sequence[Capture]) -> blobs.Dictionary:
    samples = [b"".join(capture.parts()) for capture in captures]
    return blobs.Dictionary(zstandard.train_dictionary(16_384, samples, k=64, d=8).as_bytes())


def _shared(captures: Sequence[Capture]) -> blobs.Dictionary:
    return blobs.Dictionary(shared.text(packing.voices(captures)) or b"nothing")


VARIANTS: dict[str, Callable[[Sequence[Capture]], blobs.Dictionary | None]] = {
    "zstd alone": lambda _: None,
    "zstd's trained dictionary (holds single exchanges)": _trained,
    "an earlier exchange as dictionary (holds it)": lambda captures: blobs.Dictionary(b"".join(captures[0].parts())),
    "shared text as dictionary": _shared,
    "shared text and trained tables": lambda captures: shared.dictionary(
        shared.text(packing.voices(captures)), [capture.parts() for capture in captures]
    ),
}


def _through_the_writer(logged: Sequence[Logged]) -> tuple[int, dict[str, float]]:
    """Bytes by which a SQLite database grows, and µs of CPU a row: all told, in a usual batch, and of it for building the rows."""
    began = time.process_time()
    for each in logged:
        rows.build(each)
    building = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/stillroom.db")
        migrate.upgrade(db)
        before, writer = _in_use(Path(folder) / "stillroom.db"), Writer(db)
        spent = []
        for start in range(0, len(logged), BATCH):
            began = time.process_time()
            writer.insert(logged[start : start + BATCH])
            spent.append(time.process_time() - began)
        grown = _in_use(Path(folder) / "stillroom.db") - before
        db.close()
    usual = median(spent[: len(logged) // BATCH]) / BATCH
    seconds = {"cpu_us_a_row": sum(spent) / len(logged), "in_a_usual_batch": usual, "of_it_building": building / len(logged)}
    return grown, {name: value * 1e6 for name, value in seconds.items()}


def _in_use(path: Path) -> int:
    with sqlite3.connect(path) as database:
        pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in PAGES)
    return int((pages - free) * size)


def _tickets(count: int, seed: int) -> Iterator[Exchange]:
    head = b'{"id":"chatcmpl-bench0123456789","object":"chat.completion","created":1700000000,"model":"mock","choices":[{"index":0,'
    head += b'"message":{"role":"assistant","content":"'
    tail = b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":500,"completion_tokens":300,"total_tokens":800}}'
    answer = head + (WORDS * 20).encode()[: 1500 - len(head) - len(tail)] + tail
    for ticket in tickets.draw(seed, count):
        yield orjson.dumps(tickets.request(ticket, model="mock")), answer, False


def _streams(count: int, seed: int) -> Iterator[Exchange]:
    rng = random.Random(seed)
    for ticket in tickets.draw(seed, count):
        fixed = {"id": f"chatcmpl-{rng.getrandbits(160):040x}", "object": "chat.completion.chunk", "created": rng.randrange(10**9)}
        said = [{"role": "assistant", "content": ""}, *({"content": f" {rng.choice(WORDS.split())}"} for _ in range(100)), {}]
        chunks = [{**fixed, "model": "mock", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in said]
        chunks[-1]["choices"][0]["finish_reason"] = "stop"  # type: ignore[index]
        body = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
        yield orjson.dumps(tickets.request(ticket, model="mock", stream=True)), body, True


def _recorded(file: Path, count: int, seed: int) -> list[Exchange]:
    """Exchanges of a recording, shuffled: files lie sorted by label, and an agent's session in a row."""
    found: list[Exchange] = []
    with gzip.open(file) as lines:
        for line in lines:
            row = orjson.loads(line)
            if not isinstance(row.get("request"), dict):
                continue
            if isinstance(row.get("response_sse"), str):
                found.append((orjson.dumps({"model": "m", **row["request"]}), row["response_sse"].encode(), True))
            elif isinstance(row.get("response"), dict):
                found.append((orjson.dumps({"model": "m", **row["request"]}), orjson.dumps(row["response"]), False))
    return random.Random(seed).sample(found, min(count, len(found)))


def _logged(number: int, request: bytes, response: bytes, stream: bool) -> Logged:
    id, at = f"cap_{1_760_000_000_000 + number * 7:011x}{ids.new('x')[-15:]}", 1_760_000_000.123456 + number * 0.007
    begin = {"kind": "begin", "id": id, "at": at, "endpoint": "/v1/chat/completions", "task": None, "retry_count": 0}
    end = {
        "kind": "end", "id": id, "status": "complete", "http_status": 200, "stream": stream,
        "first_byte_ms": 0.41, "duration_ms": 0.61,
    }  # fmt: skip
    return Logged(Record(begin, request), Record(end, response))


if __name__ == "__main__":
    main()
