"""Several processes that share the batches of one run: torchrun starts them, torch.distributed joins them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.training.device import device


def start(count: int) -> None:
    """Replaces this process by torchrun with `count` processes of the same command, unless it is one of them already."""
    if count == 1 or "LOCAL_RANK" in os.environ:
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
    module = sys.modules["__main__"].__spec__
    assert module is not None
    os.environ["OMP_NUM_THREADS"] = "1"  # torchrun would say a paragraph about it; steps set their threads themselves
    sys.stderr.flush()
    os.execv(sys.executable, [*command, module.name, *sys.argv[1:]])


@contextmanager
def joined() -> Iterator["Group"]:
    """The group that this process belongs to; of itself alone where torchrun did not start it."""
    if "LOCAL_RANK" not in os.environ:
        yield Group(0, 1)
        return
    dist.init_process_group("nccl" if device().type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class Group:
    """Processes of one run."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process measures, writes and speaks."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process' part of a batch that all of them have: an equal one, in order."""
        return batch.chunk(self.size)[self.rank] if self.size > 1 else batch

    def said(self, value: float) -> float:
        """The first process' value."""
        if self.size == 1:
            return value
        said = torch.tensor([float(value)], dtype=torch.float64, device=device())
        dist.broadcast(said, 0)
        return said.item()

    def gathered(self, value: Tensor) -> list[Tensor]:
        """`value` of each process, in their order; all have the same shape."""
        if self.size == 1:
            return [value]
        here = value.to(device())
        found = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(found, here)
        return [one.to(value.device) for one in found]


ALONE = Group(0, 1)
"""A run of one process."""
