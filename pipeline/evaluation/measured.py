"""Which positions of a split an SAE is measured at, so that every metric is of the same ones."""

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.store import ActivationStore


class Measured:
    """Rows of a store that are not flagged at one hook, as places in the sequences of the split.

    The store's index is read as sequences are asked for, which has to be in their order: no more of it is held than those sequences
    and one chunk.
    """

    def __init__(self, store: ActivationStore, hook: str) -> None:
        self.column, self.sequence, self.position = store[hook], store["sequence"], store["position"]
        rows = len(store)
        last_sequence, last_position = (int(index.read(rows - 1, rows)[0]) for index in (self.sequence, self.position))
        self.sequences = last_sequence + 1
        """As many sequences of the split as the store has rows of; of the last one perhaps not all positions."""
        self.left_out = last_sequence * store.attributes["length"] + last_position + 1 - rows
        """Positions up to the last row that are no rows."""
        self._read = 0
        self._sequence, self._position = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)

    def at(self, sequences: range, length: int) -> Tensor:
        """Whether each position of these sequences, `length` long, is measured (sequences, length), bool."""
        while self._read < len(self.column) and not (len(self._sequence) and self._sequence[-1] >= sequences.stop):
            self._read_more()
        start, end = np.searchsorted(self._sequence, [sequences.start, sequences.stop]).tolist()
        found = np.zeros((len(sequences), length), dtype=bool)
        found[self._sequence[start:end] - sequences.start, self._position[start:end]] = True
        self._sequence, self._position = self._sequence[end:], self._position[end:]
        return torch.from_numpy(found)

    def _read_more(self) -> None:
        start, stop = self._read, min(self._read + self.sequence.chunk_rows, len(self.column))
        sequence, position, kept = self.sequence.read(start, stop), self.position.read(start, stop), self.column.kept(start, stop)
        if kept is not None:
            sequence, position = sequence[kept], position[kept]
        self._sequence, self._position = np.concatenate([self._sequence, sequence]), np.concatenate([self._position, position])
        self._read = stop
