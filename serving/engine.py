"""One vLLM process, looked after: prepared, started, watched, started again, stopped with everything it started."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from serving.command import DRAIN, BaseUnavailable, Command, VllmMissing
from serving.preparation import Preparation
from serving.vllm import StudentError, StudentServer
from serving.watch import PATIENT, Timing, Watch
from store import children
from store.states import EngineStatus

log = logging.getLogger("stillroom.serving")
MARKER = "STILLROOM_ENGINE"  # in the environment of what an engine started, so that orphans are known
TITLE = "VLLM::"  # how vLLM's processes call themselves, writing over that environment
OLD_LOGS = 3
HOPELESS = 3  # starts in a row that came to nothing, before the row says failed


@dataclass(frozen=True)
class State:
    """What is known of an engine now."""

    status: EngineStatus
    detail: str = ""
    url: str | None = None
    pid: int | None = None
    base_path: Path | None = None
    served_name: str = ""  #: the base model's name in vLLM
    restarts: int = 0
    context: int | None = None  #: tokens of a prompt and its answer together, as vLLM says


class Engine:
    """Supervises one vLLM. Call everything from one thread that lives as long: vLLM dies with the thread that started it."""

    def __init__(
        self,
        marker: str,
        preparation: Preparation,
        build: Callable[[Path], Command],
        model: str,
        log_file: Path,
        start_timeout: float,
        timing: Timing = PATIENT,
    ) -> None:
        self.marker, self.preparation, self.build, self.model = marker, preparation, build, model
        self.log_file, self.start_timeout, self.timing = log_file, start_timeout, timing
        self.state = State(EngineStatus.STARTING, "preparing the base model", served_name=model)
        self.server: StudentServer | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._watch: Watch | None = None
        self._started = self._due = 0.0  # monotonic
        self._pause = timing.first_pause
        self._vain_starts = 0

    def tick(self) -> State:
        """One look, and whatever it calls for. Waits for nothing longer than a health check."""
        now = time.monotonic()
        if self._child is not None:
            self._look_after(self._child, now)
        elif now >= self._due:
            self._begin(now)
        return self.state

    def stop(self) -> None:
        """Stop vLLM and all it started, within `DRAIN` seconds and some."""
        self.preparation.stop()
        if self._child is not None:
            children.stop(self._child, grace=DRAIN + 5)
        self._forget(EngineStatus.DOWN, "stopped")

    def _begin(self, now: float) -> None:
        try:
            base_path = self.preparation.poll()
            if base_path is None:
                self.state = replace(self.state, status=EngineStatus.STARTING, detail="preparing the base model")
                return
            self.state = replace(self.state, base_path=base_path)
            command = self.build(base_path)
        except (BaseUnavailable, VllmMissing) as missing:
            log.error("vLLM cannot be started: %s", missing)
            self._due = now + self.timing.missing_pause
            self.state = replace(self.state, status=EngineStatus.FAILED, detail=str(missing))
            return
        _rotate(self.log_file)
        with self.log_file.open("wb") as opened:
            self._child = children.spawn(
                command.arguments,
                stdout=opened,
                stderr=opened,
                environment={**command.environment, MARKER: self.marker},
                death_signal=command.death_signal,
            )
        _group_file(self.log_file).write_text(str(self._child.pid))
        self._started = now
        self.server = StudentServer(command.url)
        self._watch = None
        detail = "waiting for vLLM to answer"
        self.state = replace(self.state, status=EngineStatus.STARTING, detail=detail, url=command.url, pid=self._child.pid)
        log.info("vLLM started (pid %d), log %s", self._child.pid, self.log_file)

    def _look_after(self, child: subprocess.Popen[bytes], now: float) -> None:
        assert self.server is not None
        code = child.poll()
        if code is not None:
            self._died(f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}", now)
        elif self._watch is None:
            if self.server.health():
                self.state = replace(self.state, context=_context(self.server))
                self._watch = Watch(self.server, self.model, self.timing)
                self._vain_starts = 0
                self.state = replace(self.state, status=EngineStatus.READY, detail="")
                log.info("vLLM answers at %s after %.1f s", self.state.url, time.monotonic() - self._started)
            elif now - self._started > self.start_timeout:
                self._died(f"did not answer within {self.start_timeout:.0f} s", now)
        else:
            self._watch.tick(now)
            if self._watch.dead:
                self._died(f"does not generate any more ({self._watch.trouble})", now)
            elif now - self._started > self.timing.steady:
                self._pause = self.timing.first_pause

    def _died(self, how: str, now: float) -> None:
        assert self._child is not None
        if self._watch is None:
            self._vain_starts += 1
        children.signal_group(self._child, signal.SIGKILL)  # vLLM leaves its engine process behind
        self._child.wait()
        pause, self._pause = self._pause, min(2 * self._pause, self.timing.longest_pause)
        self._due = now + pause
        words = _last_error(self.log_file)
        detail = f"vLLM {how}; started again in {pause:g} s. {f'It said: {words} ' if words else ''}Log: {self.log_file}"
        log.warning("%s", detail)
        self._forget(EngineStatus.FAILED if self._vain_starts >= HOPELESS else EngineStatus.DOWN, detail)
        self.state = replace(self.state, restarts=self.state.restarts + 1)

    def _forget(self, status: EngineStatus, detail: str) -> None:
        if self.server is not None:
            self.server.close()
        self._child = self._watch = self.server = None
        self.state = replace(self.state, status=status, detail=detail, url=None, pid=None)


class Attached:
    """A vLLM that somebody else runs, as STILLROOM_STUDENT_URL says: watched, never started or stopped."""

    def __init__(self, url: str, preparation: Preparation, timing: Timing = PATIENT) -> None:
        self.preparation, self.timing = preparation, timing
        self.server: StudentServer | None = StudentServer(url)
        self.state = State(EngineStatus.STARTING, "preparing the base model", url=self.server.url)
        self._watch: Watch | None = None
        self._due = 0.0

    def tick(self) -> State:
        """One look; see `Engine.tick`."""
        now = time.monotonic()
        assert self.server is not None
        if self.state.base_path is None:
            self._prepare(now)
        elif self._watch is None:
            try:
                name = self.server.base()
            except StudentError as error:
                self.state = replace(self.state, status=EngineStatus.DOWN, detail=str(error))
            else:
                self._watch = Watch(self.server, name, self.timing)
                context = _context(self.server)
                self.state = replace(self.state, status=EngineStatus.READY, detail="", served_name=name, context=context)
        else:
            self._watch.tick(now)
            if self._watch.dead:
                self.state = replace(
                    self.state, status=EngineStatus.DOWN, detail=self._watch.trouble, restarts=self.state.restarts + 1
                )
                self._watch = None
        return self.state

    def stop(self) -> None:
        self.preparation.stop()
        if self.server is not None:
            self.server.close()
        self.state = replace(self.state, status=EngineStatus.DOWN, detail="stillroom serving was stopped")

    def _prepare(self, now: float) -> None:
        if now < self._due:
            return
        try:
            self.state = replace(self.state, base_path=self.preparation.poll())
        except BaseUnavailable as missing:
            self._due = now + self.timing.missing_pause
            self.state = replace(self.state, status=EngineStatus.FAILED, detail=str(missing))


def _context(server: StudentServer) -> int | None:
    """None where the server does not say: it is then asked for as much as the client wishes."""
    try:
        return server.context()
    except StudentError:
        return None


def reap(marker: str, log_file: Path) -> int:
    """Kill what an engine of this name left behind when its supervisor was killed. Returns how many processes."""
    file = _group_file(log_file)
    group, since = (int(file.read_text() or 0), file.stat().st_mtime) if file.exists() else (0, 0.0)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marked = process.environ().get(MARKER) == marker
            titled = "".join(process.cmdline()[:1]).startswith(TITLE) and os.getpgid(process.pid) == group
            if process.pid != os.getpid() and (marked or (titled and process.create_time() > since - 1)):
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=10)
    if found:
        log.warning("killed %d processes that a vLLM of an earlier life left behind", len(found))
    return len(found)


def _group_file(log_file: Path) -> Path:
    """Where the process group of the vLLM started last is noted."""
    return log_file.with_suffix(".group")


def _rotate(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    for number in range(OLD_LOGS, 0, -1):
        older = file.with_name(f"{file.name}.{number - 1}") if number > 1 else file
        if older.exists():
            older.replace(file.with_name(f"{file.name}.{number}"))


def _last_error(file: Path) -> str:
    """The error that a person should read first: the engine's own, not that of those who waited for it."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 100_000))
        text = opened.read().decode(errors="replace")
    errors = re.findall(r"^.*?\b((?:[\w.]+(?:Error|Exception)|error): .+)$", text, re.MULTILINE)
    telling = [error for error in errors if "Engine core initialization failed" not in error]
    return str(telling[-1])[:500].rstrip(".") + "." if telling else ""
