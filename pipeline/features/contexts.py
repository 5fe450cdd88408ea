"""Where each latent fires most strongly: the best sequences, one context of each.

Two passes over the store: the first finds the sequences, the second reads the latent's values in them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.store import ActivationStore, Column
from pipeline.evaluation.measured import unflagged
from pipeline.saes.base import SAE


@dataclass(frozen=True)
class Block:
    """Whole sequences of a store: latents (B, M) of rows start .., and where each sequence begins in them."""

    start: int
    latents_BM: Tensor
    """0 in flagged rows: an attention sink is no place where a latent fires."""
    kept: Tensor | None
    """Which rows are not flagged (B,), bool; None when all are."""
    positions: np.ndarray
    """Of the rows in their sequences (B,)."""
    sequences: np.ndarray
    """Ids of the sequences (S,)."""
    lengths: Tensor
    """Rows of each (S,)."""


def blocks(store: ActivationStore, hooks: list[str], sae: SAE, size: int) -> Iterator[Block]:
    """The store in blocks of whole sequences, about `size` rows each, kept those flagged at none of the hooks. The SAE reads the first."""
    columns, index, positions = [store[hook] for hook in hooks], store["sequence"], store["position"]
    column = columns[0]
    start, rows = 0, len(column)
    while start < rows:
        stop = _sequence_end(index, start, size, rows)
        ids, counts = np.unique(index.read(start, stop), return_counts=True)
        latents = sae.encode(torch.from_numpy(column.read(start, stop)))
        found = unflagged(columns, start, stop)
        kept = None if found is None or found.all() else torch.from_numpy(found)
        if kept is not None:
            latents[~kept] = 0
        yield Block(start, latents, kept, positions.read(start, stop), ids, torch.from_numpy(counts))
        start = stop


def _sequence_end(index: Column, start: int, size: int, rows: int) -> int:
    """The last sequence boundary at most `size` rows on, or the first one after that."""
    if start + size >= rows:
        return rows
    last = -1
    while start + size // 2 < rows:
        ids = index.read(start, start + size + 1)
        changes = np.flatnonzero(ids[1:] != ids[:-1])
        if len(changes):
            return start + int(changes[last]) + 1
        size, last = 2 * size, 0
    return rows


class Strongest:
    """For each latent, the sequences with its largest values so far."""

    def __init__(self, latents: int, contexts: int) -> None:
        self.kept = contexts
        self.values_MK = torch.zeros(latents, contexts)
        self.sequences_MK = torch.full((latents, contexts), -1, dtype=torch.int64)

    def add(self, block: Block) -> None:
        """Takes in a block. Of equal values the earlier sequence stays in front."""
        best_SM = torch.segment_reduce(block.latents_BM, "max", lengths=block.lengths, axis=0)
        keep = min(self.kept, len(best_SM))
        at_MK = best_SM.T.argsort(dim=1, descending=True, stable=True)[:, :keep]
        new_MK = best_SM.T.gather(1, at_MK)
        values = torch.cat([self.values_MK, new_MK], 1)
        sequences = torch.cat([self.sequences_MK, torch.from_numpy(block.sequences)[at_MK]], 1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, : self.kept]
        self.values_MK, self.sequences_MK = values.gather(1, order), sequences.gather(1, order)

    def contexts(self, before: int, after: int, store: ActivationStore) -> "Contexts":
        """A place for every context in which a latent fires, ordered by sequence; `fill` reads them."""
        latent, rank = (self.values_MK > 0).nonzero(as_tuple=True)
        sequence = self.sequences_MK[latent, rank].numpy()
        order = np.argsort(sequence, kind="stable")
        return Contexts(latent.numpy()[order], rank.numpy()[order], sequence[order], before, after, store)


class Contexts:
    """Latents' values around their strongest row in each of their best sequences; P contexts in arrays of fixed size.

    A window is a run of positions of a sequence, rows or not, up to the last row of the store. (Not a list of small arrays: those, made
    between large ones, would leave holes in memory that add up to gigabytes.)
    """

    def __init__(self, latent: np.ndarray, rank: np.ndarray, sequence: np.ndarray, before: int, after: int, store: ActivationStore) -> None:
        self.latent, self.rank, self.sequence = latent, rank, sequence
        self.before, self.after = before, after
        self.sequence_length = int(store.attributes["length"])
        last = (int(store[name].read(len(store) - 1, len(store))[0]) for name in ("sequence", "position"))
        self.last_sequence, self.last_position = last
        self.row = np.zeros(len(latent), dtype=np.int64)
        """Row of the store where the latent is strongest."""
        self.position = np.zeros(len(latent), dtype=np.int32)
        """Its position in the sequence."""
        self.first = np.zeros(len(latent), dtype=np.int64)
        """Position at which the window begins."""
        self.length = np.zeros(len(latent), dtype=np.int64)
        self.values = np.zeros((len(latent), before + after + 1), dtype=np.float32)
        """The latent over the window, `length` values of it: 0 at positions that are no rows, or flagged."""

    def __len__(self) -> int:
        return len(self.latent)

    def fill(self, block: Block) -> None:
        """Reads those contexts whose sequence is in the block."""
        ends = torch.cumsum(block.lengths, 0).tolist()
        low, high = np.searchsorted(self.sequence, [block.sequences[0], block.sequences[-1] + 1]).tolist()
        for at in range(low, high):
            which = int(np.searchsorted(block.sequences, self.sequence[at]))
            stop = ends[which]
            begin = stop - int(block.lengths[which])
            values, positions = block.latents_BM[begin:stop, int(self.latent[at])].numpy(), block.positions[begin:stop]
            strongest = int(values.argmax())
            position = int(positions[strongest])
            sequence_end = self.last_position + 1 if self.sequence[at] == self.last_sequence else self.sequence_length
            first, end = max(0, position - self.before), min(sequence_end, position + self.after + 1)
            inside = slice(*np.searchsorted(positions, [first, end]).tolist())
            self.row[at], self.position[at], self.first[at], self.length[at] = block.start + begin + strongest, position, first, end - first
            self.values[at, positions[inside] - first] = values[inside]

    def split_positions(self) -> np.ndarray:
        """Where the windows begin, counted from the beginning of the split (P,)."""
        return self.sequence * self.sequence_length + self.first
