"""Where a training is, on disk: written whole or not at all, the last two kept. And its outcome, published in one move."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

KEPT = 2
STUCK = 3  #: times that a training may begin at a step and be killed before the next checkpoint, until it takes less memory
_BEGUN = "begun.json"


class Foreign(Exception):
    """The folder holds another training's checkpoints."""


class NotWritten(OSError):
    """A checkpoint or an adapter cannot be written, as on a full disk; nothing is left of it. The message says where and why."""


@dataclass
class State:
    """All that a killed training needs to go on as if nothing had happened."""

    fingerprint: str
    budget: int  #: tokens computed together; less than the recipe's where the memory did not suffice
    step: int = 0  #: how many are done
    losses: list[float] = field(default_factory=list)  #: one a step
    validation: list[float] = field(default_factory=list)  #: one an epoch
    reference: list[float] = field(default_factory=list)  #: DPO's margins at the start
    tokens: int = 0
    computed: int = 0  #: tokens, shared ones counted once a step
    rows: int = 0  #: learned from by the processes that were timed
    seconds: float = 0.0
    looping: float = 0.0  #: seconds of the steps alone
    ended: bool = False  #: before its last step, because it got no better
    best: dict[str, Any] = field(default_factory=dict)  #: the weights after the best epoch, if that is not the last
    weights: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    rng: Any = None


def write(out: Path, state: State) -> None:
    """Write the state beside the older ones; of those all but the newest are deleted. Raises NotWritten."""
    import torch

    target = out / f"checkpoint-{state.step:07}.pt"
    partial = target.with_suffix(".partial")
    with _writing(target, partial):
        with partial.open("wb") as file:
            torch.save({each.name: getattr(state, each.name) for each in fields(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    for old in sorted(out.glob("checkpoint-*.pt"))[:-KEPT]:
        old.unlink()


def last(out: Path, fingerprint: str) -> State | None:
    """The newest state that can be read; those that cannot be are deleted. Raises Foreign."""
    import torch

    for file in sorted(out.glob("checkpoint-*.pt"), reverse=True):
        try:
            state = State(**torch.load(file, weights_only=True))
        except (OSError, EOFError, KeyError, TypeError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            print(f"{file.name} cannot be read and is deleted: {error}", file=sys.stderr)
            file.unlink()
            continue
        if state.fingerprint != fingerprint:
            raise Foreign(f"{out} holds checkpoints of another training (other rows, recipe or base model): give an empty folder")
        return state
    return None


def begin(out: Path, state: State) -> None:
    """Note that a process begins at this state. If it was begun here before again and again, memory may be why: halve the budget.

    A process that the system kills for its memory cannot say so.
    """
    note = out / _BEGUN
    try:
        before = json.loads(note.read_text())
        times = before["times"] + 1 if before["step"] == state.step else 1
    except (OSError, ValueError, KeyError, TypeError):
        times = 1
    for _ in range(times - STUCK + 1):
        state.budget = max(1, state.budget // 2)
    if times >= STUCK:
        print(f"killed {times - 1} times at step {state.step}: {state.budget} tokens at once now", file=sys.stderr)
    note.write_text(json.dumps({"step": state.step, "times": times}))


def end(out: Path, *, keep: bool) -> None:
    """A process ends in good order, with its work done or (`keep`) in a checkpoint."""
    (out / _BEGUN).unlink(missing_ok=True)
    for left in [] if keep else out.glob("checkpoint-*"):
        left.unlink()


def sweep(out: Path) -> None:
    """Remove all that only a training under way needs, and what one left that was killed."""
    end(out, keep=False)
    for left in out.glob(".writing-*"):
        shutil.rmtree(left)


def publish(folder: Path, write_into: Callable[[Path], None], summary: dict[str, Any]) -> None:
    """Move what `write_into(folder)` writes, and training.json beside it, to its place in one move. Raises NotWritten."""
    partial = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    with _writing(folder, partial):
        partial.mkdir(parents=True)
        write_into(partial)
        (partial / "training.json").write_text(json.dumps(summary, indent=2))
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(folder, ignore_errors=True)  # an epoch's, by a process that was killed before its checkpoint
        partial.rename(folder)


@contextmanager
def _writing(target: Path, partial: Path) -> Iterator[None]:
    """Around what writes `partial`: if that fails, remove what there is of it and raise NotWritten."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        why = _system_error(error)
        if why is None and not isinstance(error, SafetensorError):
            raise
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise NotWritten(f"{target} cannot be written: {why or error}") from error


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said: torch ends a file that could not be written with an error of its own, which does not tell why."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
