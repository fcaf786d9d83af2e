"""What should be loaded against what is: adapters of routes, of staged rollouts and of candidates, and nothing else.

vLLM forgets what was loaded when it restarts, so this is done over and over. An adapter's name is never used twice.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from serving.adapters import AdapterRefused, check
from serving.settings import ServingSettings
from serving.vllm import AdapterMissing, StudentDown, StudentRefused, StudentServer
from store.states import AdapterStatus, RolloutStage
from store.tables import Adapter, Rollout, Route

log = logging.getLogger("stillroom.serving")
GRACE = 5.0  # seconds between an adapter's last use for anything and its unloading: the proxies follow a route within one
AGAIN = 30.0  # seconds before an adapter that could not be loaded is tried again


class Need(Enum):
    """Why an adapter should be loaded."""

    LIVE = "live"  #: a route points at it
    STAGED = "staged"  #: it is being judged, or about to be promoted
    NEW = "new"  #: a candidate that nobody has looked at


@dataclass(frozen=True)
class Wanted:
    """An adapter that should be loaded."""

    id: str
    folder: Path
    sha256: str
    base_model: str
    need: Need
    files: Mapping[str, str] = field(default_factory=dict)
    transform: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """What the rows ask for."""

    wanted: tuple[Wanted, ...] = ()
    known: frozenset[str] = frozenset()  #: all adapters there are: a server's other models are not ours to unload


@dataclass(frozen=True)
class Outcome:
    """What one pass found and did."""

    loaded: tuple[str, ...]  #: wanted adapters that the server has now, and those it keeps a little longer
    refused: dict[str, str] = field(default_factory=dict)  #: adapter id -> why it must not, or will not, be loaded
    unread: dict[str, str] = field(default_factory=dict)  #: adapter id -> why its folder could not be read: tried again later
    complete: bool = True  #: the server answered throughout, so that whatever is missing was refused


def read(session: Session, settings: ServingSettings) -> Plan:
    """The plan as the rows say now."""
    live = set(session.exec(select(Route.adapter_id).where(col(Route.adapter_id).is_not(None))).all())
    stages = dict(session.exec(select(Rollout.adapter_id, Rollout.stage)).all())
    wanted = []
    adapters = session.exec(select(Adapter).order_by(col(Adapter.created_at))).all()
    for adapter in adapters:
        if adapter.id in live:
            need = Need.LIVE
        elif stages.get(adapter.id) == RolloutStage.STAGED:
            need = Need.STAGED
        elif adapter.id not in stages and adapter.status == AdapterStatus.CANDIDATE:
            need = Need.NEW
        else:
            continue
        folder = settings.home_path / adapter.path
        wanted.append(Wanted(adapter.id, folder, adapter.sha256, adapter.base_model, need, adapter.files, adapter.transform))
    return Plan(tuple(wanted), frozenset(adapter.id for adapter in adapters))


class Reconciler:
    """Brings one server in line with a plan. Remembers only since when what is not wanted, and what failed lately."""

    def __init__(self, settings: ServingSettings, grace: float = GRACE, again: float = AGAIN) -> None:
        self.settings, self.grace, self.again = settings, grace, again
        self._unwanted: dict[str, float] = {}  # adapter -> since when, monotonic
        self._failed: dict[str, tuple[float, str, bool]] = {}  # adapter -> when, monotonic, why, and whether it was refused

    def step(self, server: StudentServer, base_path: Path, plan: Plan) -> Outcome:
        """One pass. Raises StudentDown if the server cannot even say what it has."""
        now = time.monotonic()
        have = set(server.models()) & plan.known
        wanted = {each.id for each in plan.wanted}
        self._failed = {name: failure for name, failure in self._failed.items() if name in wanted}
        refused, unread = dict[str, str](), dict[str, str]()
        complete = True
        for adapter in plan.wanted:
            if adapter.id in have:
                continue
            at, why, was_refused = self._failed.get(adapter.id, (-self.again, "", False))
            if now - at < self.again:
                (refused if was_refused else unread)[adapter.id] = why
                continue
            try:
                self._load(server, base_path, adapter)
            except (AdapterRefused, StudentRefused, AdapterMissing) as error:
                log.error("adapter %s is not loaded: %s", adapter.id, error)
                refused[adapter.id] = str(error)
                self._failed[adapter.id] = (now, str(error), True)
            except OSError as error:
                unread[adapter.id] = f"{error.filename or adapter.folder} cannot be read: {error.strerror or error}"
                log.error("adapter %s is not loaded: %s", adapter.id, unread[adapter.id])
                self._failed[adapter.id] = (now, unread[adapter.id], False)
            except StudentDown as error:
                log.warning("adapter %s has to wait: %s", adapter.id, error)
                complete = False
                break
            else:
                self._failed.pop(adapter.id, None)
                have.add(adapter.id)
        have -= self._unload(server, have - wanted, now)
        return Outcome(tuple(sorted(have)), refused, unread, complete)

    def _load(self, server: StudentServer, base_path: Path, adapter: Wanted) -> None:
        if adapter.base_model != self.settings.base_model:
            raise AdapterRefused(f"it was trained for the base model {adapter.base_model!r}, not {self.settings.base_model!r}")
        check(
            adapter.folder,
            artifacts=self.settings.artifacts,
            sha256=adapter.sha256,
            base_path=base_path,
            max_rank=self.settings.max_lora_rank,
            files=adapter.files,
            transform=adapter.transform,
        )
        began = time.monotonic()
        try:
            server.load(adapter.id, str(adapter.folder))
        except StudentRefused as refused:
            server.probe(server.base())  # raises StudentDown if it is vLLM that is in trouble, not the adapter
            raise StudentRefused(str(refused)) from refused
        log.info("adapter %s loaded in %.0f ms", adapter.id, (time.monotonic() - began) * 1000)

    def _unload(self, server: StudentServer, unwanted: set[str], now: float) -> set[str]:
        """Unload what nothing has wanted for `grace` seconds; returns what is gone."""
        self._unwanted = {name: self._unwanted.get(name, now) for name in unwanted}
        gone = set()
        for name, since in self._unwanted.items():
            if now - since >= self.grace:
                server.unload(name)
                gone.add(name)
                log.info("adapter %s unloaded", name)
        return gone
