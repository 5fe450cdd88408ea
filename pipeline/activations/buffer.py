"""Rows of some hooks that are held in memory: read block by block by some threads, gathered row by row.

Rows are held as they are stored, narrow or sparse; what lies on a disk of this machine's and is not compressed in the page cache, where
nothing has to be copied.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import ClassVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.blocks import Blocks
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


class DenseRows:
    """Memory for rows of a dense hook."""

    def __init__(self, column: Column, blocks: Blocks, most: int) -> None:
        """`most` is how many blocks are held."""
        self.column, self.blocks = column, blocks
        self.rows = np.empty((min(most * blocks.size, blocks.rows), column.shape[1]), dtype=STORED[column.dtype])
        # Torch does not gather unsigned integers of two bytes, so that they are taken for what they stand for.
        self.tensor = torch.from_numpy(self.rows.view(SIGNED.get(column.dtype, self.rows.dtype))).view(getattr(torch, column.dtype))

    def tasks(self, blocks: np.ndarray) -> Iterator[Task]:
        """What reads these blocks, chunk by chunk."""
        for chunk, at in self.blocks.chunks(self.column, blocks):
            start, stop = self.column.chunks.span(chunk)
            yield partial(self.column.chunks.read_into, chunk, self.rows[at : at + stop - start])

    def gather(self, places: Tensor, found: Tensor) -> None:
        """The rows at some places, into `found`."""
        torch.index_select(self.tensor, 0, places, out=found)


class MappedRows:
    """Rows of a dense hook that are used where they lie, in files that are mapped into memory."""

    def __init__(self, column: Column, blocks: Blocks, most: int) -> None:
        """`most` is how many blocks are held."""
        self.column, self.blocks = column, blocks
        self.files = column.chunks.room()
        whole = self.files.bytes[: len(self.files.bytes) // 4 * 4].view(SIGNED.get(column.dtype, column.dtype))
        flat, width = torch.from_numpy(whole).view(getattr(torch, column.dtype)), column.shape[1]
        # Checksums lie between the chunks, so that a row may begin anywhere.
        self.rows = flat.as_strided((len(flat) - width + 1, width), (1, 1))
        self.begins = torch.zeros(-(-most * blocks.size // column.chunk_rows), dtype=torch.int64)
        """Where each chunk begins, less where it would if chunks lay one after the other, in numbers."""

    def tasks(self, blocks: np.ndarray) -> Iterator[Task]:
        """What brings these blocks in, shard by shard, and compares their checksums. Those that were held are let go."""
        self.files.release()
        for _, run in groupby(self.blocks.chunks(self.column, blocks), lambda one: one[0] // self.column.chunks.per_shard):
            yield partial(self._bring, *map(list, zip(*run, strict=True)))

    def _bring(self, chunks: list[int], places: list[int]) -> None:
        """Of one shard: where each begins is kept, and is for the chunk that is held from that place on."""
        begins, at = np.array(self.column.chunks.map_into(chunks, self.files)), np.array(places)
        self.begins.numpy()[at // self.column.chunk_rows] = begins // self.rows.element_size() - at * self.column.shape[1]

    def gather(self, places: Tensor, found: Tensor) -> None:
        """The rows at some places, into `found`."""
        first = self.begins.index_select(0, places // self.column.chunk_rows)
        torch.index_select(self.rows, 0, first.add_(places, alpha=self.column.shape[1]), out=found)


class SparseRows:
    """Memory for rows of a sparse hook."""

    def __init__(self, column: Column, blocks: Blocks, most: int) -> None:
        """`most` is how many blocks are held."""
        self.column, self.blocks, self.numbers = column, blocks, blocks.numbers[column.name]
        rows, numbers = min(most * blocks.size, blocks.rows), _most_numbers(column, blocks, most)
        self.values, self.indices = np.empty(numbers, dtype=STORED[column.dtype]), np.empty(numbers, dtype=_index_type(column))
        self.starts, self.lengths = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.int64)

    def tasks(self, blocks: np.ndarray) -> Iterator[Task]:
        """What reads these blocks, chunk by chunk."""
        number = 0
        for chunk, at in self.blocks.chunks(self.column, blocks):
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
        self.hooks = {column.name: _kind(column)(column, blocks, most) for column in columns}
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


def _kind(column: Column) -> type[DenseRows | MappedRows | SparseRows]:
    """How rows of a hook are held."""
    return SparseRows if column.sparse else MappedRows if column.chunks.mappable else DenseRows


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
