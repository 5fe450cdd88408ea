"""The rows of a store in blocks: the least runs of rows that are whole chunks of every hook that is read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.store import Column


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

    def numbers_at(self, places: Tensor, blocks: np.ndarray) -> Tensor:
        """Which rows of the store lie at some places when these blocks are held one after the other, int64."""
        slot = torch.div(places, self.size, rounding_mode="floor")
        return (torch.from_numpy(blocks * self.size).index_select(0, slot)).add_(places).sub_(slot, alpha=self.size)

    def chunks(self, column: Column, blocks: np.ndarray) -> Iterator[tuple[int, int]]:
        """The chunks of some blocks, each with the place of its first row where the blocks are held one after the other."""
        each = self.size // column.chunk_rows
        for slot, number in enumerate(blocks.tolist()):
            for chunk in range(number * each, min((number + 1) * each, len(column.chunks))):
                yield chunk, slot * self.size + (chunk - number * each) * column.chunk_rows


def _numbers(column: Column) -> np.ndarray:
    """How many numbers each chunk of a sparse hook holds, int64."""
    return np.concatenate([column.chunks.stored(shard) for shard in range(-(-len(column) // column.shard_rows))])
