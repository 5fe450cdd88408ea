"""Rows of some hooks that are held in memory: read block by block by some threads, gathered row by row.

A block is the least run of rows that is whole chunks of every hook. Rows are held as they are stored, narrow or sparse.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ClassVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.layout import SPARSE_CHUNK, STORED
from pipeline.activations.store import Column
from pipeline.activations.sums import Sparse

READERS = 2
"""Threads that read chunks; neither reading nor comparing checksums holds the interpreter's lock."""
ORDER_BYTES = 32
"""Of each row that is held: its place in the order, and what is needed to make that."""
GATHERED = 2**14
"""Numbers of a sparse hook that are put in place at a time, about."""
SIGNED = {"bfloat16": np.int16}
Task = Callable[[], None]


@dataclass
class Blocks:
    """The rows of a store in blocks of `size` rows, the last perhaps shorter."""

    size: int
    rows: int
    """Of the store, flagged ones as well."""
    flagged: np.ndarray
    """Numbers of the rows that are flagged for any of the hooks, rising, int64."""
    kept: np.ndarray
    """How many rows of each block are not, int64."""
    numbers: dict[str, np.ndarray]
    """How many numbers each chunk of a sparse hook holds, int64."""

    @classmethod
    def of(cls, columns: list[Column]) -> "Blocks":
        """The blocks that all these hooks of one store can be read by. Raises DamagedArtifact."""
        rows, step = len(columns[0]), columns[0].shard_rows
        size = math.lcm(*(column.chunk_rows for column in columns))
        flagged = []
        for start in range(0, rows, step):
            masks = [kept for column in columns if (kept := column.kept(start, start + step)) is not None]
            if masks:
                flagged.append(start + np.flatnonzero(~np.logical_and.reduce(masks)))
        found = np.concatenate(flagged) if flagged else np.empty(0, dtype=np.int64)
        count = -(-rows // size)
        kept = np.full(count, size) - np.bincount(found // size, minlength=count)
        kept[-1] -= count * size - rows
        return cls(size, rows, found, kept, {column.name: _numbers(column) for column in columns if column.sparse})

    def __len__(self) -> int:
        return len(self.kept)

    def bytes(self) -> int:
        """What this itself takes, and an order of the blocks."""
        return self.flagged.nbytes + 3 * self.kept.nbytes + sum(numbers.nbytes for numbers in self.numbers.values())

    def places(self, blocks: np.ndarray) -> np.ndarray | None:
        """Where rows that are not flagged lie when these blocks are held one after the other; None when everywhere."""
        if self.kept[blocks].sum() == len(blocks) * self.size:
            return None
        here = np.ones((len(blocks), self.size), dtype=bool)
        for slot in np.flatnonzero(self.kept[blocks] < self.size):
            first = blocks[slot] * self.size
            start, stop = np.searchsorted(self.flagged, (first, first + self.size))
            here[slot, self.flagged[start:stop] - first] = False
            here[slot, self.rows - first :] = False
        return np.flatnonzero(here)


class DenseRows:
    """Memory for rows of a dense hook."""

    def __init__(self, column: Column, blocks: Blocks, most: int) -> None:
        """`most` is how many blocks are held."""
        self.column, self.block = column, blocks.size
        self.rows = np.empty((min(most * blocks.size, blocks.rows), column.shape[1]), dtype=STORED[column.dtype])
        # Torch does not gather unsigned integers of two bytes, so that they are taken for what they stand for.
        self.tensor = torch.from_numpy(self.rows.view(SIGNED.get(column.dtype, self.rows.dtype))).view(getattr(torch, column.dtype))

    def tasks(self, blocks: np.ndarray) -> Iterator[Task]:
        """What reads these blocks, chunk by chunk."""
        for chunk, at in _chunks(self.column, self.block, blocks):
            start, stop = self.column.chunks.span(chunk)
            yield partial(self.column.chunks.read_into, chunk, self.rows[at : at + stop - start])

    def gather(self, places: Tensor, found: Tensor) -> None:
        """The rows at some places, into `found`."""
        torch.index_select(self.tensor, 0, places, out=found)


class SparseRows:
    """Memory for rows of a sparse hook."""

    def __init__(self, column: Column, blocks: Blocks, most: int) -> None:
        """`most` is how many blocks are held."""
        self.column, self.block, self.numbers = column, blocks.size, blocks.numbers[column.name]
        rows, numbers = min(most * blocks.size, blocks.rows), _most_numbers(column, blocks, most)
        self.values, self.indices = np.empty(numbers, dtype=STORED[column.dtype]), np.empty(numbers, dtype=_index_type(column))
        self.starts, self.lengths = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.int64)

    def tasks(self, blocks: np.ndarray) -> Iterator[Task]:
        """What reads these blocks, chunk by chunk."""
        number = 0
        for chunk, at in _chunks(self.column, self.block, blocks):
            yield partial(self._read, chunk, at, number)
            number += int(self.numbers[chunk])

    def _read(self, chunk: int, at: int, number: int) -> None:
        rows = self.column.chunks.read(chunk)
        assert isinstance(rows, Sparse)
        some = slice(number, number + len(rows.values))
        self.values[some], self.indices[some] = rows.values, rows.indices
        self.starts[at : at + len(rows)] = rows.pointers[:-1] + number
        self.lengths[at : at + len(rows)] = np.diff(rows.pointers)

    def gather(self, places: Tensor, found: Tensor) -> None:
        """The rows at some places, with all their numbers, into `found`."""
        dense = (found.view(torch.int16) if self.column.dtype == "bfloat16" else found).numpy().view(self.values.dtype)
        dense[...] = 0
        rows = places.numpy()
        some = max(1, GATHERED * len(rows) // max(1, int(self.lengths[rows].sum())))
        for first in range(0, len(rows), some):
            starts, lengths = self.starts[rows[first : first + some]], self.lengths[rows[first : first + some]]
            which = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
            dense[np.repeat(np.arange(first, first + len(lengths)), lengths), self.indices[which]] = self.values[which]


class Memory:
    """Room for up to `most` blocks of some hooks."""

    def __init__(self, columns: list[Column], blocks: Blocks, most: int) -> None:
        self.blocks = blocks
        self.hooks = {column.name: (SparseRows if column.sparse else DenseRows)(column, blocks, most) for column in columns}
        self.held: np.ndarray | None = None
        """Numbers of the blocks that are held, one after the other."""

    @staticmethod
    def bytes(columns: list[Column], blocks: Blocks, most: int) -> int:
        """What that takes, with the order of its rows."""
        rows = min(most * blocks.size, blocks.rows)
        found = rows * ORDER_BYTES
        for column in columns:
            size = np.dtype(STORED[column.dtype]).itemsize
            if column.sparse:
                found += 16 * rows + (size + np.dtype(_index_type(column)).itemsize) * _most_numbers(column, blocks, most)
            else:
                found += rows * column.shape[1] * size
        return found

    def tasks(self, blocks: np.ndarray) -> list[Task]:
        """What reads these blocks into it; nothing when it holds them. Whoever has done all of it sets `held`."""
        if self.held is not None and np.array_equal(self.held, blocks):
            return []
        self.held = None
        return [task for rows in self.hooks.values() for task in rows.tasks(blocks)]

    def numbers(self, places: Tensor) -> Tensor:
        """Which rows of the store lie at some places, int64."""
        assert self.held is not None
        size = self.blocks.size
        return torch.from_numpy(self.held).index_select(0, places // size) * size + places % size


class Readers:
    """Threads that do tasks while others wait or go on; those not begun are dropped when it is closed, or the program ends."""

    open: ClassVar[WeakSet["Readers"]] = WeakSet()

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(READERS)
        self.closed = False
        self.open.add(self)

    def start(self, tasks: Iterable[Task]) -> list[Future]:
        """Has some tasks done in their order; the first fault ends them, and is what `result()` of one of the futures raises."""
        waiting = deque(tasks)
        return [self.threads.submit(self._work, waiting) for _ in range(READERS)]

    def _work(self, waiting: deque[Task]) -> None:
        while not self.closed:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            try:
                task()
            except BaseException:
                waiting.clear()
                raise
        raise CancelledError  # whoever waits must not take for read what was dropped

    def close(self) -> None:
        """Waits for the tasks that are under way."""
        self.closed = True
        self.threads.shutdown(cancel_futures=True)


def _drop() -> None:
    """Ends all reading of passes that nobody closed."""
    for readers in list(Readers.open):
        readers.closed = True


# `atexit` comes too late: it is called when the threads have done all that they were given.
threading._register_atexit(_drop)  # type: ignore[attr-defined]


def _numbers(column: Column) -> np.ndarray:
    """How many numbers each chunk of a sparse hook holds, int64."""
    return np.concatenate([column.chunks.stored(shard) for shard in range(-(-len(column) // column.shard_rows))])


def chunk_bytes(column: Column, blocks: Blocks) -> int:
    """What a chunk of a hook takes as it is decoded, at most."""
    size = np.dtype(STORED[column.dtype]).itemsize
    if not column.sparse:
        return column.chunk_rows * column.shape[1] * size
    numbers, per_shard = blocks.numbers[column.name], column.shard_rows // column.chunk_rows
    fullest = int(np.add.reduceat(numbers, np.arange(0, len(numbers), per_shard)).max())
    decoded = min(fullest, max(SPARSE_CHUNK, int(numbers.max())) + SPARSE_CHUNK)
    return 16 * column.chunk_rows + (size + np.dtype(_index_type(column)).itemsize) * decoded


def _most_numbers(column: Column, blocks: Blocks, most: int) -> int:
    """Numbers of the fullest `most` blocks of a sparse hook."""
    numbers = blocks.numbers[column.name]
    each = np.add.reduceat(numbers, np.arange(0, len(numbers), blocks.size // column.chunk_rows))
    return int(np.sort(each)[::-1][:most].sum())


def _index_type(column: Column) -> str:
    return "uint16" if column.shape[1] <= 2**16 else "uint32"


def _chunks(column: Column, block: int, blocks: np.ndarray) -> Iterator[tuple[int, int]]:
    """The chunks of some blocks, each with the place of its first row where the blocks are held."""
    each = block // column.chunk_rows
    for slot, number in enumerate(blocks.tolist()):
        for chunk in range(number * each, min((number + 1) * each, len(column.chunks))):
            yield chunk, slot * block + (chunk - number * each) * column.chunk_rows
