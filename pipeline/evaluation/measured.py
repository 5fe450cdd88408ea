"""Which rows of a split an SAE is measured on, so that every metric is of the same ones."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.store import ActivationStore, Column


def unflagged(columns: list[Column], start: int, stop: int) -> np.ndarray | None:
    """Which of rows start .. stop - 1 are flagged at none of these hooks, bool; None when all rows are kept."""
    found = [one for column in columns if (one := column.kept(start, stop)) is not None]
    return np.logical_and.reduce(found) if found else None


def batches(columns: list[Column], size: int) -> Iterator[list[Tensor]]:
    """The rows that are flagged at none of these hooks, in order and up to `size` at a time, float32 (B, width) of each hook."""
    rows = len(columns[0])
    step = max(1, max(column.chunk_rows for column in columns) // size) * size
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        blocks, some = [torch.from_numpy(column.read(start, stop)) for column in columns], unflagged(columns, start, stop)
        mask = None if some is None else torch.from_numpy(some)
        for begin in range(0, stop - start, size):
            part = slice(begin, begin + size)
            if mask is None or mask[part].any():
                yield [block[part] if mask is None else block[part][mask[part]] for block in blocks]


class Measured:
    """Rows of a store that are flagged at none of some hooks, as places in the sequences of the split.

    The store's index is read as sequences are asked for, which has to be in their order: no more of it is held than those sequences
    and one chunk.
    """

    def __init__(self, store: ActivationStore, *hooks: str) -> None:
        self.columns, self.sequence, self.position = [store[hook] for hook in hooks], store["sequence"], store["position"]
        self.rows = len(store)
        last_sequence, last_position = (int(index.read(self.rows - 1, self.rows)[0]) for index in (self.sequence, self.position))
        self.sequences = last_sequence + 1
        """As many sequences of the split as the store has rows of; of the last one perhaps not all positions."""
        self.left_out = last_sequence * store.attributes["length"] + last_position + 1 - self.rows
        """Positions up to the last row that are no rows."""
        self._read = 0
        self._sequence, self._position = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)

    def at(self, sequences: range, length: int) -> Tensor:
        """Whether each position of these sequences, `length` long, is measured (sequences, length), bool."""
        while self._read < self.rows and not (len(self._sequence) and self._sequence[-1] >= sequences.stop):
            self._read_more()
        start, end = np.searchsorted(self._sequence, [sequences.start, sequences.stop]).tolist()
        found = np.zeros((len(sequences), length), dtype=bool)
        found[self._sequence[start:end] - sequences.start, self._position[start:end]] = True
        self._sequence, self._position = self._sequence[end:], self._position[end:]
        return torch.from_numpy(found)

    def _read_more(self) -> None:
        start, stop = self._read, min(self._read + self.sequence.chunk_rows, self.rows)
        sequence, position = self.sequence.read(start, stop), self.position.read(start, stop)
        some = unflagged(self.columns, start, stop)
        if some is not None:
            sequence, position = sequence[some], position[some]
        self._sequence, self._position = np.concatenate([self._sequence, sequence]), np.concatenate([self._position, position])
        self._read = stop
