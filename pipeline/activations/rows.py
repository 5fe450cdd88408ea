"""Which positions of a split become rows: a function of the split and the study alone, known before the model computes anything."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Artifact
from pipeline.datasets import tokens
from pipeline.models.examples import Batch, Examples, TableExamples

BLOCK = 2**20
"""Tokens that are counted at a time."""
SAMPLE = 2048
"""Positions that a median is taken of."""


def tokens_left_out(dataset: Artifact, rule: str) -> list[int]:
    """Ids of the tokens that become no rows under `leave_out: <rule>`; none in a table."""
    if dataset.facts["form"] == "table" or rule == "none":
        return []
    special: list[int] = tokens.special(dataset).tolist()
    return sorted(special) if rule == "special" else [one for one in [tokens.beginning(dataset)] if one in special]


class Rows:
    """The rows of a split, batch by batch.

    `batch` sequences go through the model at a time; of their positions all become rows but those of the tokens in `ids`, up to `limit`.
    """

    def __init__(self, split: Examples, batch: int, ids: list[int], limit: int | None) -> None:
        self.split, self.batch, self.ids, self.limit = split, batch, ids, limit
        self.out = torch.tensor(ids, dtype=torch.int64)
        self.starts = np.concatenate([[0], np.cumsum(self._sizes())])
        """Positions before each batch, and in all of them (batches + 1,)."""
        self.ends = np.cumsum(self._counts())
        """Rows up to the end of each batch, were there no limit (batches,)."""
        every = int(self.ends[-1]) if len(self.ends) else 0
        self.total = min(every, limit or every)
        if not len(self.ends):
            raise UserError("the split is empty: there is nothing to record of it")
        if not self.total:
            raise UserError("no position of the split becomes a row: all its tokens are left out; leave_out: none keeps them")
        self.left_out = self._passed(every) - self.total
        """Positions left out: of all, or of those before the last row where a limit ends the rows."""

    def _sizes(self) -> np.ndarray:
        """Positions of each batch, int64. The shorter last window is a batch of its own."""
        positions, length = self.split.positions(), self.split.length
        whole = positions // length * length
        return np.concatenate([_cut(whole, self.batch * length), _cut(positions - whole, length)])

    def _counts(self) -> np.ndarray:
        """Rows of each batch, int64."""
        sizes, split = np.diff(self.starts), self.split
        if isinstance(split, TableExamples) or not self.ids:
            return sizes
        some = max(1, BLOCK // (self.batch * split.length))
        for first in range(0, len(sizes), some):
            starts = self.starts[first : first + some + 1]
            out = np.isin(split.ids[starts[0] : starts[-1]], self.ids)
            sizes[first : first + some] -= np.add.reduceat(out, starts[:-1] - starts[0], dtype=np.int64)
        return sizes

    def _passed(self, every: int) -> int:
        """Positions up to the last row; all of them when no limit ends the rows."""
        if isinstance(self.split, TableExamples):
            return self.total
        if self.total == every:
            return int(self.starts[-1])
        last = int(np.searchsorted(self.ends, self.total))
        kept = ~np.isin(self.split.ids[self.starts[last] : self.starts[last + 1]], self.ids)
        before = int(self.ends[last - 1]) if last else 0
        return int(self.starts[last] + np.searchsorted(np.cumsum(kept), self.total - before)) + 1

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
        """The batches that rows start .. stop - 1 come from, whole, each with the number of its first row; none without a row."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        at = int(self.ends[first - 1]) if first else 0
        for number, batch in enumerate(self.split.batches(self.batch, first), first):
            if self.ends[number] > at:
                yield at, batch
            at = int(self.ends[number])
            if at >= stop:
                return

    def most_positions(self) -> int:
        """Positions of the largest batch."""
        return int(np.diff(self.starts).max())

    def axes(self, inputs: torch.Tensor) -> tuple[int, ...]:
        """Axes of a hook's output before its width, for a batch's inputs: (B, T), or (B,) of a table."""
        return tuple(inputs.shape[: 1 if isinstance(self.split, TableExamples) else 2])

    def kept(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """Which positions of a batch's inputs become rows (B * T,); None when all do."""
        if not self.ids:
            return None
        kept = ~torch.isin(inputs.flatten(), self.out)
        return None if kept.all() else kept

    def sample(self) -> torch.Tensor:
        """Inputs of about SAMPLE positions, at most a batch of them: sequences spread evenly over the split."""
        size = min(self.batch, max(1, SAMPLE // self.split.length))
        found = next(self.split.spread(size, size), None)
        return found[0] if found else next(self.split.batches(size)).inputs

    def index(self, batch: Batch, kept: torch.Tensor | None) -> dict[str, np.ndarray]:
        """Token, sequence and position of a batch's rows."""
        ids = batch.inputs
        table = isinstance(self.split, TableExamples)
        length = 1 if table else ids.shape[1]
        columns: dict[str, Any] = {
            "token": np.full(len(ids), -1, dtype=np.int32) if table else ids.flatten().numpy().astype(np.int32),
            "sequence": np.repeat(np.arange(batch.sequences.start, batch.sequences.stop, dtype=np.int64), length),
            "position": np.tile(np.arange(length, dtype=np.int32), len(batch.sequences)),
        }
        return columns if kept is None else {name: values[kept.numpy()] for name, values in columns.items()}


def _cut(count: int, size: int) -> np.ndarray:
    """Sizes of the parts when `count` things are taken `size` at a time, int64."""
    whole, rest = divmod(count, size)
    return np.array([size] * whole + [rest] * bool(rest), dtype=np.int64)
