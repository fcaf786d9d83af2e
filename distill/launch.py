"""Starting a training as several processes: on this machine, or on a Ray cluster.

    python -m distill.launch --trainers 2 [--ray HOST:PORT] [--processors 1] -- --base FOLDER --data data.jsonl --out DIR ...

What follows `--` is `distill.train`'s; what that prints, this prints, and it ends as that would. On a cluster, every node needs
this Python environment and the folders named, under the same paths. This machine must be one of its nodes, or the address a Ray
client's (ray://HOST:PORT). A trainer or a node that dies there is replaced; the training goes on from its last checkpoint.
"""

import argparse
import json
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from distill.settings import DistillSettings
from distill.world import LOST
from store import children

STOPPED = 143  #: what it ends with when it was told to stop, and has put its work in safety
LOOK_SECONDS = 0.2
GRACE_SECONDS = 10.0  #: to end a step and write a checkpoint
OTHERS_SECONDS = 2.0  #: after one has failed, for the others to say why
REACH_SECONDS = 10.0  #: for the cluster to answer
MEETING_SECONDS = 600.0  #: for the cluster to have room, until it is said that there is none
FRUITLESS = 3  #: replacements without a step in between, and the training has failed


def command(settings: DistillSettings, arguments: Sequence[str | Path]) -> list[str | Path]:
    """The command line that trains with these arguments of `distill.train`: alone, or by as many as the settings say."""
    if settings.trainers == 1 and settings.ray_address is None:
        return [sys.executable, "-m", "distill.train", *arguments]
    launch: list[str | Path] = [sys.executable, "-m", "distill.launch", "--trainers", str(settings.trainers)]
    launch += ["--processors", str(settings.trainer_processors)]
    if settings.ray_address is not None:
        launch += ["--ray", settings.ray_address]
    return [*launch, "--", *arguments]


class TrainersFailed(Exception):
    """The training has ended without a result. `code` is the exit code to end with; negative: a signal."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.code = code


@dataclass
class News:
    """What a trainer has printed since it was last asked, and how it has ended (None: it has not)."""

    lines: list[str]
    ended: int | None


class Trainer:
    """A trainer process and its ears. Lives where the process does: here, or as an actor on a node of the cluster."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._printed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._silent = False

    def start(self, command: Sequence[str], environment: Mapping[str, str], host: str) -> None:
        """`host`: this node's address among the others; the trainers talk to each other through the interface that has it."""
        interface = next(
            (name for name, found in psutil.net_if_addrs().items() if any(each.address == host for each in found)), None
        )
        near = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}
        self._child = children.spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, environment={**near, **environment})
        threading.Thread(target=self._listen, args=(self._child,), daemon=True).start()

    def news(self) -> News:
        lines: list[str] = []
        while not self._silent:
            try:
                line = self._printed.get_nowait()
            except queue.Empty:
                break
            if line is None:
                self._silent = True
            else:
                lines.append(line)
        assert self._child is not None
        return News(lines, self._child.poll() if self._silent else None)

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        if self._child is not None and self._child.poll() is None:
            children.signal_group(self._child, signal.SIGTERM)

    def kill(self) -> None:
        if self._child is not None:
            children.stop(self._child, grace=0)

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        with child.stdout as printed:
            for line in printed:
                self._printed.put(line.decode(errors="replace").rstrip())
        self._printed.put(None)


class Crew(Protocol):
    """Where trainers work."""

    def begin(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        """Start one trainer for each environment. Raises Fallen."""

    def news(self) -> list[News]:
        """Of each trainer. Raises Fallen."""

    def stop(self) -> None:
        """Ask them all to write a checkpoint and end."""

    def end(self) -> None:
        """Kill what is left."""


class Fallen(Exception):
    """A trainer has gone without a word, or the node that it worked on; others may take over."""


@dataclass
class Here:
    """Processes of this machine."""

    trainers: list[Trainer] = field(default_factory=list)

    def begin(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        threads = str(max(1, (os.cpu_count() or 1) // len(environments)))
        self.trainers = [Trainer() for _ in environments]
        for rank, (trainer, environment) in enumerate(zip(self.trainers, environments, strict=True)):
            trainer.start(command, {"OMP_NUM_THREADS": threads, "LOCAL_RANK": str(rank), **environment}, "127.0.0.1")

    def news(self) -> list[News]:
        return [trainer.news() for trainer in self.trainers]

    def stop(self) -> None:
        for trainer in self.trainers:
            trainer.stop()

    def end(self) -> None:
        for trainer in self.trainers:
            trainer.kill()


@dataclass
class Cluster:
    """Actors of a Ray cluster, each with a GPU if the cluster has that many, all at once or not at all."""

    address: str
    processors: int  #: of each trainer
    actors: list[Any] = field(default_factory=list)
    group: Any = None

    def __post_init__(self) -> None:
        # Ray would count this use, and look for what it can send its maker.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        try:
            host, _, port = self.address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()  # Ray itself would try for minutes
            ray.init(address=self.address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise TrainersFailed(f"the Ray cluster at {self.address} cannot be reached: {error}", 1) from error

    def begin(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpus = int(ray.cluster_resources().get("GPU", 0) >= len(environments))
        needs = {"CPU": float(self.processors), **({"GPU": 1.0} if gpus else {})}
        self.group = placement_group([needs for _ in environments], strategy="PACK")
        if not self.group.wait(MEETING_SECONDS):
            raise TrainersFailed(f"the cluster has no room for {len(environments)} trainers with {needs} each", 1)
        place = PlacementGroupSchedulingStrategy(placement_group=self.group)
        actor = ray.remote(Trainer).options(num_cpus=self.processors, num_gpus=gpus, scheduling_strategy=place)
        self.actors = [actor.remote() for _ in environments]
        with _fallen():
            hosts = ray.get([each.__ray_call__.remote(_host) for each in self.actors])
            ray.get(
                [
                    each.start.remote(list(command), {"OMP_NUM_THREADS": str(self.processors), **environment}, host)
                    for each, environment, host in zip(self.actors, environments, hosts, strict=True)
                ]
            )

    def news(self) -> list[News]:
        import ray

        with _fallen():
            found: list[News] = ray.get([each.news.remote() for each in self.actors])
        for rank, each in enumerate(found):
            if each.ended is not None and each.ended < 0:
                raise Fallen(f"trainer {rank + 1} was killed by signal {-each.ended}")
        return found

    def stop(self) -> None:
        for each in self.actors:
            each.stop.remote()

    def end(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        for each in self.actors:
            ray.kill(each)  # and with it, on Linux, the process that it started
        if self.group is not None:
            remove_placement_group(self.group)
        self.actors, self.group = [], None


def run(
    crew: Crew, size: int, arguments: Sequence[str], out: Path, say: Callable[[str], None], should_stop: Callable[[], bool]
) -> int:
    """Train to the end; the exit code is the trainers'. The first one's lines go to `say`. Raises TrainersFailed."""
    trained = [sys.executable, "-m", "distill.train", *arguments]
    fruitless = reached = 0
    while True:
        lines: list[deque[str]] = [deque(maxlen=20) for _ in range(size)]
        try:
            with _meeting(out) as meeting:
                crew.begin(trained, [_environment(rank, size, meeting) for rank in range(size)])
                return _follow(crew, lines, say, should_stop)
        except Fallen as fallen:
            if should_stop():
                raise TrainersFailed(f"{fallen}, when all were to stop", STOPPED) from fallen
            step = max(map(_step, lines[0]), default=0)
            fruitless, reached = (1, step) if step > reached else (fruitless + 1, reached)
            if fruitless >= FRUITLESS:
                raise TrainersFailed(f"{fallen}, as others before it at step {reached}", 1) from fallen
            say(f"{fallen}; others take over from the last checkpoint")
        finally:
            crew.end()


def _follow(crew: Crew, lines: Sequence["deque[str]"], say: Callable[[str], None], should_stop: Callable[[], bool]) -> int:
    """Listen to the trainers until all have ended, or one of them badly."""
    stopped_at = failed_at = math.inf
    while True:
        news = crew.news()
        for rank, each in enumerate(news):
            lines[rank].extend(each.lines)
        for line in news[0].lines:
            say(line)
        ends, now = [each.ended for each in news], time.monotonic()
        failed = [(rank, end) for rank, end in enumerate(ends) if end not in (None, 0, STOPPED)]
        if failed:
            failed_at = min(failed_at, now)
        if None not in ends or now - failed_at > OTHERS_SECONDS:
            break
        if stopped_at == math.inf and should_stop():
            crew.stop()
            stopped_at = now
        if now - stopped_at > GRACE_SECONDS:
            raise TrainersFailed("the trainers did not stop in time", STOPPED)
        time.sleep(LOOK_SECONDS)
    if not failed:
        return ends[0] or 0
    # One that was left alone is not the one to blame; one that was killed is, before one that could say why it failed.
    rank, code = min(failed, key=lambda each: (each[1] == LOST, each[1]))
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise TrainersFailed("\n".join([f"trainer {rank + 1} of {len(ends)} {how}; its last words:", *lines[rank]]), code)


def _step(line: str) -> int:
    """The step that a line of progress tells of; 0 for any other line."""
    with suppress(ValueError, TypeError, KeyError):
        return int(json.loads(line)["progress"]["step"])
    return 0


def _environment(rank: int, size: int, meeting: Path) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "STILLROOM_MEETING": str(meeting)}


@contextmanager
def _meeting(out: Path) -> Iterator[Path]:
    """A file by which the trainers find each other, once; no port is open for it."""
    out.mkdir(parents=True, exist_ok=True)
    file = out.absolute() / f".meeting-{uuid.uuid4().hex}"
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def _fallen() -> Iterator[None]:
    """Around calls of actors: raises Fallen if one of them is gone."""
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayActorError as error:
        raise Fallen(f"a trainer or its node is gone ({str(error).strip().splitlines()[0]})") from error


def _host(_trainer: Trainer) -> str:
    import ray.util

    return str(ray.util.get_node_ip_address())


def main(given: Sequence[str] | None = None) -> int:
    """The command line. Ends as `distill.train` would: 0, 1, 143, or by the signal that killed a trainer."""
    parser = argparse.ArgumentParser(prog="python -m distill.launch", description="Train by several processes.")
    parser.add_argument("--trainers", type=int, default=1, help="how many")
    parser.add_argument("--ray", help="address of a Ray cluster; without it they are processes of this machine")
    parser.add_argument("--processors", type=int, default=1, help="that each of them is given on the cluster")
    parser.add_argument("arguments", nargs="+", help="of distill.train, after --")
    options = parser.parse_args(given)
    trained = argparse.ArgumentParser(add_help=False)
    trained.add_argument("--out", type=Path, required=True)
    trained.add_argument("--json", action="store_true")
    known, _ = trained.parse_known_args(options.arguments)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    try:
        crew = Cluster(options.ray, options.processors) if options.ray else Here()
        return run(
            crew, options.trainers, options.arguments, known.out, lambda line: print(line, flush=True), lambda: bool(stopped)
        )
    except TrainersFailed as failed:
        print(json.dumps({"error": str(failed)}) if known.json else f"error: {failed}", flush=True)
        if failed.code < 0:
            signal.signal(-failed.code, signal.SIG_DFL) if -failed.code not in (signal.SIGKILL, signal.SIGSTOP) else None
            os.kill(os.getpid(), -failed.code)
        return abs(failed.code)


if __name__ == "__main__":
    from distill import launch  # by its name: a cluster's nodes import it so

    sys.exit(launch.main())
