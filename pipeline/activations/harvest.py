"""Records the outputs of some hooks over one split into the shards of a store: one pass, by one job or several, resumable.

A job makes those of its shards that are not written yet. The forward ends after the last hook. One shard is on its way to the disk while
the next one fills, where there is a core to do that.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.layout import INDEX, STORED, Layout, sums_file
from pipeline.activations.rows import Rows
from pipeline.activations.sums import Block, Sparse
from pipeline.activations.writer import ShardWriter
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.storage import Storage
from pipeline.console import progress
from pipeline.models.hooks import record

DIGITS = 4
"""To which a median is rounded, so that jobs on different processors agree on it."""
BITS = {torch.bfloat16: torch.int16}
"""What numpy is given in place of a type that it does not have."""
OUTERS = 3
"""Times that a shard's sums of outer products are held: as summed, one block's, and as written."""
SPARSE_COPIES = 4
"""Times that a shard's numbers of sparse hooks are held: as they come, joined, on their way to the disk, and as they are encoded."""


@dataclass(frozen=True)
class Job:
    """One of `jobs` that share a harvest; `memory_mb` is the most it may hold of rows on their way to the disk."""

    number: int = 0
    jobs: int = 1
    memory_mb: int = 4096

    def shards(self, count: int) -> range:
        """Those of `count` shards that are this job's."""
        return range(self.number * count // self.jobs, (self.number + 1) * count // self.jobs)


@torch.no_grad()
def harvest(
    model: torch.nn.Module, rows: Rows, spec: dict[str, Any], storage: Storage, digest: str, job: Job, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Writes the shards of a job; gives what `seal` has to know, which is equal for all jobs.

    `spec` is what a study says of the activations. `digest` stands for everything that decides the bytes. Raises UserError where a number
    does not fit its type, memory or disk do not suffice.
    """
    layout, medians = _sampled(model, rows, spec, device)
    times = spec["sinks_above"]
    above = {hook: times * median if times and median else None for hook, median in medians.items()}
    writer = ShardWriter(storage, layout, digest, above, spec["covariance"])
    room = _check_room(layout, storage, job, spec["covariance"])
    writer.start()
    mine = job.shards(layout.shards)
    there = dict(zip(mine, writer.written(mine), strict=True))
    sizes = {shard: stop - start for shard in mine for start, stop in [layout.span(shard)]}
    done = sum(size for shard, size in sizes.items() if there[shard])
    with progress("harvest", sum(sizes.values()), "rows", done=done) as bar, _background(torch.device(device)) as background:
        before: Future | None = None
        missing = [shard for shard in mine if not there[shard]]
        for shard, columns in _shards(model, rows, layout, missing, device, room, bar.advance):
            if before:
                before.result()
            before = background.submit(writer.write, shard, columns)
        if before:
            before.result()
    return {
        "layout": layout.describe(),
        "left_out": {"rule": spec["leave_out"], "tokens": rows.ids, "positions": rows.left_out},
        "sinks": {hook: {"times": times, "median": medians[hook], "above": above[hook]} for hook in spec["hooks"]} if times else None,
    }


class _InTurn(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        done: Future = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def _background(device: torch.device) -> Executor:
    """What writes while the forward goes on; in turn where the forward has every core, and would only wait for the one that writes."""
    if device.type == "cpu" and torch.get_num_threads() >= _cores():
        return _InTurn()
    # torch keeps the number of its threads per thread, and sums depend on it
    return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sampled(model: torch.nn.Module, rows: Rows, spec: dict[str, Any], device: torch.device | str) -> tuple[Layout, dict[str, float]]:
    """The layout, and the median norm at each hook, from a sample of the split."""
    inputs = rows.sample()
    sample = {hook: _rows(value, rows.kept(inputs)) for hook, value in _hooks(model, inputs, spec["hooks"], device).items()}
    layout = Layout.of(rows.total, {hook: value.shape[1] for hook, value in sample.items()}, spec)
    return layout, {hook: _median(value) for hook, value in sample.items()}


def _check_room(layout: Layout, storage: Storage, job: Job, covariance: list[str]) -> int:
    """Bytes that are left for the numbers of sparse hooks. Raises UserError, before the first byte, where memory or disk cannot suffice."""
    outer = sum(8 * layout.widths[hook] ** 2 for hook in covariance)
    held, most = layout.held_bytes() + OUTERS * outer, job.memory_mb * 2**20
    if held > most:
        sums = f" with covariances of {outer / 2**20:,.0f} MiB" if outer else ""
        raise UserError(
            f"shards of {layout.shard_rows:,} rows{sums} need {held / 2**20:,.0f} MiB on their way to the disk, "
            f"and memory_mb is {job.memory_mb:,}; raise it, or give fewer shard_rows"
        )
    missing = [shard for shard in range(layout.shards) if storage.size(sums_file(shard)) is None]
    rows = sum(stop - start for start, stop in map(layout.span, missing))
    needed, free = rows * layout.row_bytes() + len(missing) * outer, storage.free()
    if free is not None and needed > free:
        raise UserError(
            f"{storage.where('')}: {rows:,} rows need about {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free on that disk; "
            "make room, or record fewer rows or hooks, or with dtype: float16"
        )
    return most - held


def _hooks(model: torch.nn.Module, inputs: Tensor, hooks: list[str], device: torch.device | str) -> dict[str, Tensor]:
    return record(model, inputs.to(device), hooks)


def _rows(value: Tensor, kept: Tensor | None) -> Tensor:
    """(B, ..., D) as rows (n, D), without those that are left out."""
    flat = value.reshape(-1, value.shape[-1])
    return flat if kept is None else flat[kept.to(flat.device)]


def _median(rows: Tensor) -> float:
    """Median norm of some rows, rounded; 0 of none. Rows that are not finite are told of where they are written."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    norms = norms[norms.isfinite()]
    return float(f"{norms.median().item():.{DIGITS}g}") if len(norms) else 0.0


def _shards(
    model: torch.nn.Module,
    rows: Rows,
    layout: Layout,
    shards: list[int],
    device: torch.device | str,
    room: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, dict[str, Block]]]:
    """Each of `shards`, filled. Of shards that follow each other no batch is computed twice. `advance` is told how many rows came."""
    filling = [_Filling(layout, room), _Filling(layout, room)] if shards else []
    for first, last in _runs(shards):
        start, stop = layout.span(first)[0], layout.span(last)[1]
        shard = first
        filling[0].begin(shard)
        for at, batch in rows.batches(start, stop):
            kept = rows.kept(batch.inputs)
            found = {hook: _rows(value, kept) for hook, value in _hooks(model, batch.inputs, list(layout.widths), device).items()}
            index = rows.index(batch, kept)
            size = len(index["token"])
            begin, end = max(0, start - at), min(size, stop - at)
            while begin < end:
                count = filling[0].add(found, index, begin, end)
                begin += count
                advance(count)
                if filling[0].full():
                    yield shard, filling[0].columns()
                    # By the time that a third one begins to fill, the first has been written: its memory is taken again.
                    filling.reverse()
                    shard += 1
                    if shard <= last:
                        filling[0].begin(shard)


def _runs(shards: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of numbers that follow each other."""
    for at, shard in enumerate(shards):
        if at == 0 or shards[at - 1] != shard - 1:
            first = shard
        if at + 1 == len(shards) or shards[at + 1] != shard + 1:
            yield first, shard


class _Filling:
    """A shard that fills."""

    def __init__(self, layout: Layout, room: int) -> None:
        self.layout, self.dtype, self.room = layout, getattr(torch, layout.dtype), room
        most = min(layout.shard_rows, layout.rows)
        dense = {hook: width for hook, width in layout.widths.items() if hook not in layout.sparse}
        self.dense = {hook: torch.empty(most, width, dtype=self.dtype) for hook, width in dense.items()}

    def begin(self, shard: int) -> None:
        """Empties it, for another shard."""
        start, stop = self.layout.span(shard)
        self.rows, self.held, self.sparse_bytes = stop - start, 0, 0
        self.index: dict[str, list[np.ndarray]] = {name: [] for name in INDEX}
        self.sparse: dict[str, list[tuple[np.ndarray, ...]]] = {hook: [] for hook in self.layout.sparse}

    def full(self) -> bool:
        return self.held == self.rows

    def add(self, found: dict[str, Tensor], index: dict[str, np.ndarray], start: int, stop: int) -> int:
        """Takes in rows start .. stop - 1, as many as there is room for, and says how many."""
        count = min(stop - start, self.rows - self.held)
        some = slice(start, start + count)
        for hook, values in found.items():
            if hook in self.sparse:
                part = _sparse(values[some].to(self.dtype))
                self.sparse[hook].append(part)
                self._check_room(hook, sum(array.nbytes for array in part))
            else:
                self.dense[hook][self.held : self.held + count].copy_(values[some])
        for name, column in index.items():
            self.index[name].append(column[some])
        self.held += count
        return count

    def _check_room(self, hook: str, more: int) -> None:
        self.sparse_bytes += more
        if SPARSE_COPIES * self.sparse_bytes > self.room:
            raise UserError(
                f"sparse: the numbers of {hook} that are not zero need more than the {self.room / 2**20:,.0f} MiB that memory_mb "
                "leaves for them; raise it, give fewer shard_rows, or keep the hook dense"
            )

    def columns(self) -> dict[str, Block]:
        """What is written."""
        dense: dict[str, Block] = {hook: _numpy(rows[: self.rows]) for hook, rows in self.dense.items()}
        sparse: dict[str, Block] = {
            hook: _joined(self.sparse.pop(hook), width) for hook, width in self.layout.widths.items() if hook in self.sparse
        }
        return {**dense, **sparse, **{name: np.concatenate(parts) for name, parts in self.index.items()}}


def _sparse(rows: Tensor) -> tuple[np.ndarray, ...]:
    """Numbers that are not zero, as stored; their places; how many each row has."""
    at = rows != 0
    places = np.uint16 if rows.shape[1] <= 2**16 else np.uint32
    return _numpy(rows[at].cpu()), at.nonzero()[:, 1].cpu().numpy().astype(places), at.sum(1).cpu().numpy()


def _joined(parts: list[tuple[np.ndarray, ...]], width: int) -> Sparse:
    values, indices, counts = (np.concatenate(one) for one in zip(*parts, strict=True))
    return Sparse(values, indices, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), width)


def _numpy(rows: Tensor) -> np.ndarray:
    bits = BITS.get(rows.dtype)
    return rows.numpy() if bits is None else rows.view(bits).numpy().view(STORED["bfloat16"])
