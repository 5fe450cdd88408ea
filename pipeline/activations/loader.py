"""Shuffled batches from a store, in an order that is a function of (store, hooks, seed, epoch, batch, memory) alone
(docs/activation-store.md, section 9).

When the rows fit the memory: an exact permutation of all of them, which are read once. Otherwise blocks in random order, as many at a time
as fit half of it, their rows permuted, while the other half fills. Rows that are flagged as attention sinks for any of the hooks are left
out.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.blocks import Blocks
from pipeline.activations.buffer import READERS, Memory, Readers, chunk_bytes
from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.seeds import derive

AHEAD = 2
"""Batches on their way to a GPU while one is in use."""


@dataclass(frozen=True)
class Position:
    """Where reading goes on: at batch `batch` of epoch `epoch`."""

    epoch: int = 0
    batch: int = 0


@dataclass
class Batch:
    """The same rows of each hook that is read."""

    rows: Tensor
    """Numbers of the rows in the store (B,), int64, on the processor."""
    values: dict[str, Tensor]
    """Of each hook (B, width), float32."""
    after: Position
    """Of the batch that follows: what a state keeps to go on after this one."""
    arrived: torch.cuda.Event | None = field(default=None, repr=False)
    """When the values are on the GPU; the loader waits for it."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, hook: str) -> Tensor:
        return self.values[hook]


@dataclass
class _Group:
    """Blocks whose rows are permuted together."""

    epoch: int
    number: int
    blocks: np.ndarray
    first: int
    """The place in the order at which reading begins."""
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Places of the rows in the memory, in the order in which they come."""
    numbers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Of the same rows, in the store."""


class ActivationLoader:
    """Batches of some hooks of one store.

    Rows take at most `memory_mb`; the batches come on top: that in use and, on a GPU, up to two that are on their way. One pass at a time
    can be under way unless all rows fit. Raises UserError when the memory does not suffice, DamagedArtifact while reading.
    """

    def __init__(
        self, store: ActivationStore, hooks: str | list[str], batch: int, seed: int, memory_mb: int, device: torch.device | str = "cpu"
    ) -> None:
        names = [hooks] if isinstance(hooks, str) else hooks
        self.columns = [store[name] for name in names]
        self.batch, self.seed, self.device = batch, seed, torch.device(device)
        self.blocks = Blocks.of(self.columns)
        self.rows = int(self.blocks.kept.sum())
        """In an epoch."""
        if not self.rows:
            raise UserError(f"{store.artifact.folder}: every row of {', '.join(names)} is flagged as an attention sink; raise sinks_above")
        self.blocks_held = self._blocks_held(memory_mb)
        """Whose rows are permuted together, at most."""
        self._reading = False

    def _blocks_held(self, memory_mb: int) -> int:
        """As many as fit: all, or those of one half."""

        def needed(blocks: int) -> int:
            order = 0 if blocks < count else self.rows * 8  # that of the next epoch is made while one is read
            return (2 if blocks < count else 1) * Memory.bytes(self.columns, self.blocks, blocks) + order

        count = len(self.blocks)
        # What is compressed or far away is decoded apart, so that a chunk is there twice and more.
        passing = READERS * max(2 * chunk_bytes(column, self.blocks) for column in self.columns)
        room = memory_mb * 2**20 - self.blocks.bytes() - passing
        if needed(count) <= room:
            return count
        fitting = range(1, count)
        low, high = 0, len(fitting)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if needed(middle) <= room else (low, middle - 1)
        if not low:
            least = -(-(min(needed(1), needed(count)) + memory_mb * 2**20 - room) // 2**20)
            raise UserError(f"memory_mb: {memory_mb:,} holds no two blocks of {self.blocks.size:,} rows; give at least {least:,}")
        return low

    @property
    def exact(self) -> bool:
        """Whether an epoch is a permutation of all rows at once."""
        return self.blocks_held == len(self.blocks)

    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-self.rows // self.batch)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The rows in the order of epoch `number`, from batch `start` on, in batches of at most `batch` that are equal but for a row."""
        return self.batches(Position(number, start), number + 1)

    def batches(self, position: Position = Position(), epochs: int | None = None) -> Iterator[Batch]:
        """Batches from a position on, epoch after epoch, up to `epochs` of them; without end when None. What came before is not read."""
        if not 0 <= position.batch <= self.steps():
            raise ValueError(f"batch {position.batch:,} of an epoch of {self.steps():,}")
        if position.batch == self.steps():
            position = Position(position.epoch + 1)
        made = self._made(position, epochs)
        return _arrived(_ahead(made), self.device) if self.device.type == "cuda" else made

    @cached_property
    def _memories(self) -> list[Memory]:
        return [Memory(self.columns, self.blocks, self.blocks_held) for _ in range(1 if self.exact else 2)]

    def _start(self, batch: int) -> int:
        """The place in an epoch's order at which a batch begins."""
        size, longer = divmod(self.rows, self.steps())
        return batch * size + min(batch, longer)

    def _schedule(self, epoch: int) -> list[np.ndarray]:
        """Blocks that are held together, for each time that memory is filled, in the order of the store."""
        count = len(self.blocks)
        if self.exact:
            return [np.arange(count)]
        generator = torch.Generator().manual_seed(derive(self.seed, "sae", "order", "chunks", epoch))
        order = torch.randperm(count, generator=generator).numpy()
        return [np.sort(some) for some in np.array_split(order, -(-count // self.blocks_held))]

    def _groups(self, position: Position, epochs: int | None) -> Iterator[_Group]:
        first = self._start(position.batch)
        for epoch in itertools.count(position.epoch) if epochs is None else range(position.epoch, epochs):
            for number, blocks in enumerate(self._schedule(epoch)):
                rows = int(self.blocks.kept[blocks].sum())
                if first < rows:
                    yield _Group(epoch, number, blocks, first)
                first = max(0, first - rows)

    def _arrange(self, group: _Group) -> None:
        """Makes the order of a group."""
        generator = torch.Generator().manual_seed(derive(self.seed, "sae", "order", "rows", group.epoch, group.number))
        places = self.blocks.places(group.blocks)
        order = torch.randperm(int(self.blocks.kept[group.blocks].sum()), generator=generator)
        group.order = order if places is None else torch.from_numpy(places).index_select(0, order)
        group.numbers = self.blocks.numbers_at(group.order, group.blocks)

    def _filled(self, groups: Iterator[_Group]) -> Iterator[tuple[_Group, Memory]]:
        """Each group with the memory that holds it, while the other memory is being filled with the one that follows."""
        memories = itertools.cycle(self._memories)
        with closing(Readers()) as readers:

            def begun() -> tuple[_Group, Memory, list[Future]] | None:
                group = next(groups, None)
                if group is None:
                    return None
                memory = next(memories)
                return group, memory, readers.start([lambda: self._arrange(group), *memory.tasks(group.blocks)])

            ahead = begun()
            while ahead:
                group, memory, reading = ahead
                for one in reading:
                    one.result()
                memory.held = group.blocks
                ahead = begun()
                yield group, memory

    def _made(self, position: Position, epochs: int | None) -> Iterator[Batch]:
        if self._reading and not self.exact:
            raise RuntimeError("another pass of this loader is under way, in the same memory; make a second loader")
        self._reading = True
        try:
            with closing(self._filled(self._groups(position, epochs))) as filled:  # type: ignore[type-var]
                yield from self._cut(filled, position)
        finally:
            self._reading = False

    def _cut(self, filled: Iterable[tuple[_Group, Memory]], position: Position) -> Iterator[Batch]:
        """Batches from groups, in whose rows a batch may begin and end anywhere."""
        batch, size = position.batch, 0
        for group, memory in filled:
            at = group.first
            while at < len(group.order):
                if not size:
                    size, have = self._start(batch + 1) - self._start(batch), 0
                    numbers, values = self._room(size)
                take = min(size - have, len(group.order) - at)
                places, part = group.order[at : at + take], slice(have, have + take)
                numbers[part] = group.numbers[at : at + take]
                for hook, found in values.items():
                    memory.hooks[hook].gather(places, found[part])
                at, have = at + take, have + take
                if have == size:
                    batch = (batch + 1) % self.steps()
                    yield self._finished(numbers, values, Position(group.epoch + (batch == 0), batch))
                    size = 0

    def _room(self, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Memory for a batch, as it is stored."""
        pinned = self.device.type == "cuda"
        room = {one.name: torch.empty(rows, one.shape[1], dtype=getattr(torch, one.dtype), pin_memory=pinned) for one in self.columns}
        return torch.empty(rows, dtype=torch.int64), room

    def _finished(self, numbers: Tensor, values: dict[str, Tensor], after: Position) -> Batch:
        if self.device.type == "cpu":
            return Batch(numbers, {hook: value.float() for hook, value in values.items()}, after)
        with torch.cuda.stream(self._copying):
            moved = {hook: value.to(self.device, non_blocking=True).float() for hook, value in values.items()}
            return Batch(numbers, moved, after, self._copying.record_event())

    @cached_property
    def _copying(self) -> torch.cuda.Stream:
        """On which rows go to the GPU beside the work of others."""
        return torch.cuda.Stream(self.device)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same, made by a thread, up to two before they are asked for."""
    with closing(batches), ThreadPoolExecutor(1) as thread:  # type: ignore[type-var]
        waiting = deque(thread.submit(next, batches, None) for _ in range(AHEAD))
        try:
            while (batch := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, batches, None))
                yield batch
        finally:
            thread.shutdown(cancel_futures=True)


def _arrived(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same, for whoever uses them on the current stream of a GPU."""
    with closing(batches):  # type: ignore[type-var]
        for batch in batches:
            stream = torch.cuda.current_stream(device)
            assert batch.arrived is not None
            stream.wait_event(batch.arrived)
            for value in batch.values.values():
                value.record_stream(stream)
            yield batch
