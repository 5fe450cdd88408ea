"""Shuffled batches from a store, in an order that is a function of (seed, epoch) alone.

When the rows fit the memory budget: an exact permutation of all rows, read once. Otherwise: chunks in random order, as many
as fit the budget at a time, and the rows of those permuted.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.store import Column
from pipeline.artifacts.seeds import derive


class ActivationLoader:
    """Batches (rows, width) of one hook."""

    def __init__(self, column: Column, batch: int, seed: int, memory_mb: int) -> None:
        self.column, self.batch, self.seed = column, batch, seed
        row_bytes = 4 * column.shape[1]
        budget_rows = memory_mb * 2**20 // row_bytes
        self.chunks_held = max(1, budget_rows // column.chunk_rows // 2)
        self.rows = torch.from_numpy(column.read(0, len(column))) if len(column) <= budget_rows else None

    def steps(self) -> int:
        """Batches in an epoch."""
        if self.rows is not None:
            return -(-len(self.column) // self.batch)
        return sum(-(-sum(self._rows_of(chunk) for chunk in some) // self.batch) for some in self._blocks(0))

    def epoch(self, number: int) -> Iterator[Tensor]:
        """The rows in the order of epoch `number`, in equal batches of at most `batch`."""
        generator = torch.Generator().manual_seed(derive(self.seed, "sae", "order", "rows", number))
        if self.rows is not None:
            for some in _equal(torch.randperm(len(self.rows), generator=generator), self.batch):
                yield self.rows[some]
            return
        for chunks in self._blocks(number):
            rows = torch.from_numpy(np.concatenate([self._chunk(chunk) for chunk in sorted(chunks)]))
            for some in _equal(torch.randperm(len(rows), generator=generator), self.batch):
                yield rows[some]

    def _blocks(self, number: int) -> list[list[int]]:
        """Chunks that are held in memory together, for each time it is filled. The odd chunk, last in the store, is always last."""
        count = -(-len(self.column) // self.column.chunk_rows)
        generator = torch.Generator().manual_seed(derive(self.seed, "sae", "order", "chunks", number))
        order = torch.randperm(count, generator=generator).tolist()
        order.remove(count - 1)
        order.append(count - 1)
        return [order[start : start + self.chunks_held] for start in range(0, count, self.chunks_held)]

    def _rows_of(self, chunk: int) -> int:
        return min(self.column.chunk_rows, len(self.column) - chunk * self.column.chunk_rows)

    def _chunk(self, chunk: int) -> np.ndarray:
        start = chunk * self.column.chunk_rows
        return self.column.read(start, start + self.column.chunk_rows)


def _equal(order: Tensor, size: int) -> tuple[Tensor, ...]:
    return order.tensor_split(-(-len(order) // size))
