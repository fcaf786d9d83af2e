"""Exchanges from the spool as rows: the one place where the proxy writes captures."""

from collections.abc import Sequence

from proxy import rows
from proxy.journal import Logged
from proxy.metrics import Counters
from proxy.prices import Prices
from proxy.traces import Tracer
from store import captures, keys, tasks, templates
from store.packing import Packer
from store.session import Database
from store.states import Server
from store.tables import Capture
from store.tasks import Identity


class Writer:
    """Writes batches; remembers what the tasks' bodies are packed with. One thread's."""

    def __init__(
        self, db: Database, prices: Prices | None = None, counters: Counters | None = None, tracer: Tracer | None = None
    ) -> None:
        """`counters` and `tracer` are told what has been stored."""
        self._db = db
        self._packer = Packer()
        self._directory = templates.NOTHING
        self._prices = prices or Prices(())
        self._counters = counters or Counters()
        self._tracer = tracer

    def insert(self, batch: Sequence[Logged]) -> None:
        """Write the captures that are not there yet, the tasks they are the first of, and what their keys have spent, in one
        transaction.
        """
        with self._db.read() as session:
            self._directory = templates.read(session, self._directory)
        built = [rows.build(logged, self._prices, self._directory) for logged in batch]
        with self._db.begin() as session:
            for identity in {identity.id: identity for identity, _ in built}.values():
                tasks.ensure(session, identity)
            session.flush()
            stored = set(captures.write(session, [capture for _, capture in built], self._packer))
            keys.settle(session, [capture for _, capture in built if capture.id in stored])
        for (identity, capture), logged in zip(built, batch, strict=True):
            if capture.id in stored:
                self._tell(identity, capture, logged.begin.meta.get("traceparent"))

    def _tell(self, identity: Identity, capture: Capture, traceparent: str | None) -> None:
        tokens = (capture.prompt_tokens, capture.completion_tokens)
        cost = capture.cost_usd
        if capture.served_by == Server.STUDENT:
            cost = self._prices.cost(capture.model, *tokens)  # what it has saved
        self._counters.stored(identity.name, capture.served_by, capture.teacher, *tokens, cost)
        if self._tracer is not None:
            self._tracer.exchange(capture, task=identity.name, traceparent=traceparent)
