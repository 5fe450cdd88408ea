"""Records the outputs of some hooks over one split into the shards of a store: one pass, by one job or several, resumable.

A job makes those of its shards that are not written yet. The forward ends after the last hook. One shard is on its way to the disk while
the next one fills, where there is a core to do that.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.activations.filling import Filling
from pipeline.activations.layout import Layout, outer_file
from pipeline.activations.rows import Rows
from pipeline.activations.sums import Block
from pipeline.activations.writer import ShardWriter
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.storage import Storage
from pipeline.console import progress
from pipeline.models.hooks import record

DIGITS = 4
"""To which a median is rounded, so that jobs on different processors agree on it."""
OUTERS = 3
"""Times that a shard's sums of outer products are held: as summed, one block's, and as written."""
BESIDE = 2
"""Times that the output of the widest hook is counted beside it, for what the forward makes it of."""


@dataclass(frozen=True)
class Job:
    """One of `jobs` that share a harvest; `memory_mb` is the most it may hold of what hooks put out: a batch, and rows on their way to the
    disk."""

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
    does not fit its type, a hook's output has other axes than rows need, memory or disk do not suffice.
    """
    layout, medians, batch = _sampled(model, rows, spec, torch.device(device))
    times = spec["sinks_above"]
    above = {hook: times * median if times and median else None for hook, median in medians.items()}
    writer = ShardWriter(storage, layout, digest, above, spec["covariance"])
    outer = sum(8 * layout.widths[hook] ** 2 for hook in spec["covariance"])
    room = _room_for_sparse(layout, job, outer, batch)
    mine = job.shards(layout.shards)
    there = dict(zip(mine, writer.written(mine), strict=True))
    _check_disk(layout, storage, (n for n in range(layout.shards) if not (there[n] if n in there else writer.begun(n))), outer)
    writer.start()
    sizes = {shard: stop - start for shard in mine for start, stop in [layout.span(shard)]}
    done = sum(size for shard, size in sizes.items() if there[shard])
    with progress("harvest", sum(sizes.values()), "rows", done=done) as bar, _background(torch.device(device)) as background:
        before: Future | None = None
        missing = [shard for shard in mine if not there[shard]]
        held = [Filling(layout, room) for _ in range(1 if isinstance(background, _InTurn) else 2)] if missing else []
        for shard, columns in _shards(model, rows, layout, missing, device, held, bar.advance):
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


def _sampled(model: torch.nn.Module, rows: Rows, spec: dict[str, Any], device: torch.device) -> tuple[Layout, dict[str, float], int]:
    """The layout, the median norm at each hook, from a sample of the split, and the bytes of this machine's memory that a batch takes."""
    inputs = rows.sample()
    found, places = _outputs(model, rows, inputs, spec["hooks"], device), _places(rows.kept(inputs), device)
    layout = Layout.of(rows.total, {hook: value.shape[1] for hook, value in found.items()}, spec)
    sizes = [value.shape[1] * value.element_size() for value in found.values()]
    batch = 0 if device.type == "cuda" else rows.most_positions() * (sum(sizes) + BESIDE * max(sizes))
    return layout, {hook: _median(value if places is None else value[places]) for hook, value in found.items()}, batch


def _room_for_sparse(layout: Layout, job: Job, outer: int, batch: int) -> int:
    """Bytes that are left for the numbers of sparse hooks. `outer` are those of a shard's sums of outer products, `batch` those of what
    hooks put out for a batch. Raises UserError where memory cannot suffice."""
    held, most = layout.held_bytes() + OUTERS * outer, job.memory_mb * 2**20
    if held > most:
        sums = f" with covariances of {outer / 2**20:,.0f} MiB" if outer else ""
        raise UserError(
            f"shards of {layout.shard_rows:,} rows{sums} need {held / 2**20:,.0f} MiB on their way to the disk, "
            f"and memory_mb is {job.memory_mb:,}; raise it, or give fewer shard_rows"
        )
    if held + batch > most:
        raise UserError(
            f"batch: what the hooks put out for one batch needs about {batch / 2**20:,.0f} MiB, shards on their way to the disk "
            f"{held / 2**20:,.0f} MiB, and memory_mb is {job.memory_mb:,}; lower batch, or raise memory_mb"
        )
    return most - held - batch


def _check_disk(layout: Layout, storage: Storage, missing: Iterable[int], outer: int) -> None:
    """Raises UserError where the shards that are missing, of all jobs, cannot find room; what lies there of them will be replaced."""
    free = storage.free()
    if free is None:
        return
    rows = needed = 0
    for shard in missing:
        start, stop = layout.span(shard)
        there = sum(storage.size(name) or 0 for name in (*layout.files(shard), outer_file(shard)))
        rows += stop - start
        needed += max(0, (stop - start) * layout.row_bytes() + outer - there)
    if needed > free:
        raise UserError(
            f"{storage.where('')}: {rows:,} rows need about {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free on that disk; "
            "make room, or record fewer rows or hooks, or with dtype: float16"
        )


def _outputs(model: torch.nn.Module, rows: Rows, inputs: Tensor, hooks: list[str], device: torch.device | str) -> dict[str, Tensor]:
    """What hooks put out for a batch's inputs, as (positions, width). Raises UserError where an output has other axes, so that nobody can
    tell which position its rows are of."""
    axes = rows.axes(inputs)
    found = record(model, inputs.to(device), hooks)
    for hook, value in found.items():
        if value.shape[:-1] != axes:
            names = "(batch, width)" if len(axes) == 1 else "(batch, position, width)"
            here = f"({', '.join(map(str, axes))}, any width)"
            raise UserError(f"hook {hook}: its output is {tuple(value.shape)}, and rows are made of {names}, here {here}")
        found[hook] = value.reshape(-1, value.shape[-1])
    return found


def _places(kept: Tensor | None, device: torch.device | str) -> Tensor | None:
    """Numbers of the positions that are rows, of a mask (positions,); None when all are."""
    return None if kept is None else kept.nonzero().flatten().to(device)


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
    held: list[Filling],
    advance: Callable[[int], None],
) -> Iterator[tuple[int, dict[str, Block]]]:
    """Each of `shards`, filled. Of shards that follow each other no batch is computed twice. `advance` is told how many rows came.

    They fill the memory of `held` in turn: by the time that one of them is taken again, what it held must have been written.
    """
    hooks = list(layout.widths)
    for first, last in _runs(shards):
        start, stop = layout.span(first)[0], layout.span(last)[1]
        shard = first
        held[0].begin(shard)
        for at, batch in rows.batches(start, stop):
            kept = rows.kept(batch.inputs)
            found, places, index = _outputs(model, rows, batch.inputs, hooks, device), _places(kept, device), rows.index(batch, kept)
            size = len(index["token"])
            begin, end = max(0, start - at), min(size, stop - at)
            while begin < end:
                count = held[0].add(found, places, index, begin, end)
                begin += count
                advance(count)
                if held[0].full():
                    yield shard, held[0].columns()
                    held.reverse()
                    shard += 1
                    if shard <= last:
                        held[0].begin(shard)
            del found  # before the next batch is computed: one is held, not two


def _runs(shards: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of numbers that follow each other."""
    for at, shard in enumerate(shards):
        if at == 0 or shards[at - 1] != shard - 1:
            first = shard
        if at + 1 == len(shards) or shards[at + 1] != shard + 1:
            yield first, shard
