"""Several processes that share the batches of one run: torchrun starts them (launch.py), torch.distributed joins them."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.artifacts.errors import UserError
from pipeline.training.device import device


def start(count: int) -> None:
    """Replaces this process by torchrun with `count` processes of the same command, unless it is one of them already."""
    if count == 1 or _is_worker():
        return
    if device().type == "cuda" and count > torch.cuda.device_count():
        raise UserError(f"training.processes: {count}, and this machine has {torch.cuda.device_count()} GPUs; one process takes one")
    command = [sys.executable, "-m", "pipeline.training.launch", "--standalone", f"--nproc-per-node={count}", "-m"]
    module = sys.modules["__main__"].__spec__
    assert module is not None
    os.environ["OMP_NUM_THREADS"] = "1"  # torchrun would say a paragraph about it; steps set their threads themselves
    sys.stderr.flush()
    os.execv(sys.executable, [*command, module.name, *sys.argv[1:]])


@contextmanager
def joined() -> Iterator["Group"]:
    """The group that this process belongs to; of itself alone where torchrun did not start it."""
    if not _is_worker():
        yield ALONE
        return
    _end_with_parent()
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)  # random states and waiting are of the current GPU
    # The first process measures while the others wait.
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", timeout=timedelta(hours=24))
    # After an error nothing is closed here: the others would fail for it before they can know why (steps/command.py).
    yield Group(dist.get_rank(), dist.get_world_size())
    dist.barrier()  # gloo aborts a process whose peer has closed its connections
    dist.destroy_process_group()


def first() -> bool:
    """Whether this process is the only one of its run, or the first: known before they have joined."""
    return not _is_worker() or os.environ["RANK"] == "0"


def _is_worker() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _end_with_parent() -> None:
    """Linux ends this process when torchrun is killed; elsewhere the lock of its snapshots keeps a second run away."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Group:
    """Processes of one run."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process measures, writes and speaks."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process' part of a batch that all of them have, in order: equal ones, but for a row."""
        return batch.tensor_split(self.size)[self.rank] if self.size > 1 else batch

    def said(self, value: float) -> float:
        """The first process' value."""
        if self.size == 1:
            return value
        said = torch.tensor([float(value)], dtype=torch.float64, device=device())
        dist.broadcast(said, 0)
        return said.item()

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over the processes of numbers () that each has by the same names."""
        if self.size == 1:
            return values
        names = sorted(values)
        found = torch.stack([values[name].double() for name in names])
        dist.all_reduce(found)
        return dict(zip(names, found / self.size, strict=True))

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes."""
        if self.size == 1:
            return value
        found = value.detach().clone()
        dist.all_reduce(found)
        return found

    @torch.no_grad()
    def average(self, parameters: list[Tensor], share: float) -> None:
        """Makes gradients those of the whole batch, of which this process has `share`: one exchange for all of them."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).mul_(share)
        dist.all_reduce(flat)
        for p, gradient, part in zip(parameters, gradients, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = gradient.copy_(part.view(p.shape))

    def joined(self, value: Tensor) -> Tensor:
        """Values of all processes along the first dimension, in which they may differ."""
        if self.size == 1:
            return value
        lengths = [int(one) for one in self.gathered(torch.tensor(len(value)))]
        room = value.new_zeros(max(lengths), *value.shape[1:])
        room[: len(value)] = value.detach()
        return torch.cat([found[:length] for found, length in zip(self.gathered(room), lengths, strict=True)])

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
