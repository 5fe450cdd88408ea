"""Where each latent fires most strongly: the best sequences, one context of each.

Two passes over the store: the first finds the sequences, the second reads the latent's values in them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.store import ActivationStore, Column
from pipeline.saes.base import SAE


@dataclass(frozen=True)
class Block:
    """Whole sequences of a store: latents (B, M) of rows start .., and where each sequence begins in them."""

    start: int
    latents_BM: Tensor
    sequences: np.ndarray
    """Ids of the sequences (S,)."""
    lengths: Tensor
    """Rows of each (S,)."""


def blocks(store: ActivationStore, hook: str, sae: SAE, size: int) -> Iterator[Block]:
    """The store in blocks of whole sequences, about `size` rows each."""
    column, index = store[hook], store["sequence"]
    start, rows = 0, len(column)
    while start < rows:
        stop = _sequence_end(index, start, size, rows)
        ids, counts = np.unique(index.read(start, stop), return_counts=True)
        latents = sae.encode(torch.from_numpy(column.read(start, stop)))
        yield Block(start, latents, ids, torch.from_numpy(counts))
        start = stop


def _sequence_end(index: Column, start: int, size: int, rows: int) -> int:
    """The last sequence boundary at most `size` rows on, or the first one after that."""
    while start + size < rows:
        ids = index.read(start, start + size + 1)
        changes = np.flatnonzero(ids[1:] != ids[:-1])
        if len(changes):
            return start + int(changes[-1]) + 1
        size *= 2
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

    def contexts(self, before: int, after: int) -> "Contexts":
        """A place for every context in which a latent fires, ordered by sequence; `fill` reads them."""
        latent, rank = (self.values_MK > 0).nonzero(as_tuple=True)
        sequence = self.sequences_MK[latent, rank].numpy()
        order = np.argsort(sequence, kind="stable")
        return Contexts(latent.numpy()[order], rank.numpy()[order], sequence[order], before, after)


class Contexts:
    """Latents' values around their strongest row in each of their best sequences; P contexts in arrays of fixed size.

    (Not a list of small arrays: those, made between large ones, would leave holes in memory that add up to gigabytes.)
    """

    def __init__(self, latent: np.ndarray, rank: np.ndarray, sequence: np.ndarray, before: int, after: int) -> None:
        self.latent, self.rank, self.sequence = latent, rank, sequence
        self.before, self.after = before, after
        self.row = np.zeros(len(latent), dtype=np.int64)
        """Row of the store where the latent is strongest."""
        self.start = np.zeros(len(latent), dtype=np.int64)
        """Row of the store where the window begins."""
        self.length = np.zeros(len(latent), dtype=np.int64)
        self.values = np.zeros((len(latent), before + after + 1), dtype=np.float32)
        """The latent over the window, `length` values of it."""

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
            values = block.latents_BM[begin:stop, int(self.latent[at])].numpy()
            strongest = int(values.argmax())
            first, last = max(0, strongest - self.before), min(len(values), strongest + self.after + 1)
            self.row[at], self.start[at] = block.start + begin + strongest, block.start + begin + first
            self.length[at] = last - first
            self.values[at, : last - first] = values[first:last]
