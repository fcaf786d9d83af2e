"""The processes that train one student together: each computes its part of a step, and all take the same step.

Started by `distill.launch`, torchrun or accelerate, each finds its place in the environment (RANK, WORLD_SIZE, and LOCAL_RANK where
there are GPUs). They meet at MASTER_ADDR:MASTER_PORT or, where it is named, at STILLROOM_MEETING: a file in a folder that all see.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from distill.render import Example

LOST = 3  #: the exit code of a process that another one of the same training has left alone
BUCKET = 1 << 24  #: numbers that are summed over the processes at once


class PeerLost(Exception):
    """Another process of this training has ended."""


@dataclass(frozen=True)
class World:
    """This process among those that train together. Alone, nothing here does anything or needs torch.

    Every process must make the same calls in the same order. Each raises PeerLost if another process has ended.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def part(self, rows: "Sequence[Example]") -> list[int]:
        """Which rows are this process's, by their places."""
        return divide(rows, self.size)[self.rank]

    def each(self, rows: "Sequence[Example]", compute: Callable[[list[int]], list[float]]) -> list[float]:
        """A number for each row: of its own rows, given by their places, each process computes them."""
        if self.size == 1:
            return compute(list(range(len(rows))))
        import torch

        found = torch.zeros(len(rows), dtype=torch.float64)
        if mine := self.part(rows):
            found[mine] = torch.tensor(compute(mine), dtype=torch.float64)
        self._reduce([found])
        return found.tolist()

    def sum_gradients(self, parameters: "Sequence[torch.nn.Parameter]") -> None:
        """Make every process's gradients the sum over all of them."""
        if self.size == 1:
            return
        import torch

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._reduce([parameter.grad for parameter in parameters if parameter.grad is not None])

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them at least."""
        return self.total(int(flag)) > 0

    def total(self, number: int) -> int:
        """The sum over the processes."""
        if self.size == 1:
            return number
        import torch

        found = torch.tensor([float(number)], dtype=torch.float64)
        self._reduce([found])
        return int(found.item())

    def _reduce(self, tensors: "Sequence[torch.Tensor]") -> None:
        """Sum over the processes, in place; many small tensors as few large ones."""
        import torch
        from torch import distributed

        device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
        for bucket in _buckets([tensor.numel() for tensor in tensors]):
            some = [tensors[i] for i in bucket]
            flat = torch.cat([tensor.reshape(-1).to(device) for tensor in some])
            try:
                distributed.all_reduce(flat)
            except (RuntimeError, ValueError) as error:  # gloo's and NCCL's errors are RuntimeErrors
                raise PeerLost(f"another process of this training has ended: {error}") from error
            for tensor, part in zip(some, torch.split(flat, [tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(part.view_as(tensor))


@contextmanager
def join() -> Iterator[World]:
    """This process's world; of one, where the environment names no other."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    import torch
    from torch import distributed

    rank, gpu = int(os.environ["RANK"]), torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    meeting = os.environ.get("STILLROOM_MEETING")
    where: dict[str, Any] = {"init_method": f"file://{meeting}"} if meeting else {}
    try:
        distributed.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=size, **where)
    except (RuntimeError, ValueError) as error:
        raise PeerLost(f"the {size} processes of this training have not met: {error}") from error
    yield World(rank, size)
    distributed.destroy_process_group()  # after an error it may wait for those that are gone


ALONE = World()


def divide(rows: "Sequence[Example]", parts: int) -> list[list[int]]:
    """The rows' places in as many parts, of about the same work each. What begins alike stays together: it is computed but once."""
    if parts == 1:
        return [list(range(len(rows)))]
    tokens = [row.prompt + row.completion for row in rows]
    order = sorted(range(len(rows)), key=tokens.__getitem__)
    # What all begin with is everybody's work and tells nothing; of the rest, a row costs what the one before it does not have.
    before = [tokens[i] for i in (order[-1:] + order)[: len(rows)]]
    done = list(accumulate(1 + len(tokens[i]) - _shared(tokens[i], last) for i, last in zip(order, before, strict=True)))
    ends = [bisect_left(done, done[-1] * part / parts) + 1 for part in range(1, parts)] if rows else [0] * (parts - 1)
    return [order[begin:end] for begin, end in zip([0, *ends], [*ends, len(rows)], strict=True)]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _buckets(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours of at most BUCKET numbers together, or one that has more."""
    bucket: list[int] = []
    for i, size in enumerate(sizes):
        if bucket and sum(sizes[j] for j in bucket) + size > BUCKET:
            yield bucket
            bucket = []
        bucket.append(i)
    if bucket:
        yield bucket
