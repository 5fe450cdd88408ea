"""What goes into a model and what should come out, for both forms of dataset.

A sequence is one row of a table (one position) or one window of tokens. Windows lie end to end; the last may be shorter.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.seeds import derive
from pipeline.datasets import tables, tokens


@dataclass(frozen=True)
class Batch:
    """Some sequences of equal length: inputs and targets, and which sequences they are."""

    inputs: Tensor
    targets: Tensor
    sequences: range


class TableExamples:
    """Rows of a table: inputs (rows, width), targets (rows,)."""

    length = 1

    def __init__(self, dataset: Artifact, split: str) -> None:
        rows, target = tables.read(dataset, split)
        self.rows, self.target = torch.from_numpy(rows), torch.from_numpy(target)

    def __len__(self) -> int:
        return len(self.rows)

    def positions(self) -> int:
        """Positions in all sequences."""
        return len(self.rows)

    def batches(self, size: int, first: int = 0) -> Iterator[Batch]:
        """All sequences in order, `size` at a time, from batch `first` on."""
        for start in range(first * size, len(self.rows), size):
            some = slice(start, start + size)
            yield Batch(self.rows[some], self.target[some], range(start, start + len(self.rows[some])))

    def spread(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`count` rows spread evenly over the split, `size` at a time."""
        count = min(count, len(self.rows))
        for some in torch.tensor([n * len(self.rows) // count for n in range(count)]).split(size):
            yield self.rows[some], self.target[some]

    def epoch(self, number: int, size: int, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows in the order of epoch `number`, from batch `start` on: equal batches of at most `size`."""
        order = torch.randperm(len(self.rows), generator=_generator(seed, number))
        parts = -(-len(order) // size)
        rows, target = self.rows[order].tensor_split(parts), self.target[order].tensor_split(parts)
        yield from zip(rows[start:], target[start:], strict=True)


class TokenExamples:
    """Windows of `length` tokens: ids (B, T) in, the ids one further on as targets. The ids stay on disk."""

    def __init__(self, dataset: Artifact, split: str, length: int) -> None:
        self.ids = tokens.read(dataset, split)
        if len(self.ids) < 2:
            raise UserError(f"the {split} split has {len(self.ids)} tokens, and no next one to predict; give it a larger share")
        self.length = length
        self.special = torch.from_numpy(tokens.special(dataset))
        """Ids that are no text, such as the end of a document."""

    def __len__(self) -> int:
        return -(-self.positions() // self.length)

    def positions(self) -> int:
        """Tokens that have a next token."""
        return len(self.ids) - 1

    def _windows(self, starts: Iterable[int], length: int) -> tuple[Tensor, Tensor]:
        ids = torch.from_numpy(np.stack([self.ids[start : start + length + 1] for start in starts]).astype(np.int64))
        return ids[:, :-1], ids[:, 1:]

    def batches(self, size: int, first: int = 0) -> Iterator[Batch]:
        """All windows in order, `size` at a time, from batch `first` on; the shorter last one is a batch of its own."""
        whole, rest = divmod(self.positions(), self.length)
        for start in range(first * size, whole, size):
            some = range(start, min(start + size, whole))
            yield Batch(*self._windows((n * self.length for n in some), self.length), some)
        if rest and first <= -(-whole // size):
            yield Batch(*self._windows([whole * self.length], rest), range(whole, whole + 1))

    def spread(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`count` full windows spread evenly over the split, `size` at a time: text is seldom the same throughout."""
        whole = self.positions() // self.length
        count = min(count, whole)
        starts = [n * whole // count * self.length for n in range(count)]
        for at in range(0, count, size):
            yield self._windows(starts[at : at + size], self.length)

    def epoch(self, number: int, size: int, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Full windows in the order of epoch `number`, cut at an offset of that epoch, in batches of `size`, from batch `start` on."""
        if self.positions() < self.length:
            raise UserError(f"the split has {self.positions()} tokens with a next one, and a window is {self.length}; make context smaller")
        generator = _generator(seed, number)
        offset = int(torch.randint(min(self.length, self.positions() - self.length + 1), (), generator=generator))
        count = (self.positions() - offset) // self.length
        order = torch.randperm(count, generator=generator)[: max(count // size * size, min(size, count))]
        for some in order.split(size)[start:]:
            yield self._windows((offset + some * self.length).tolist(), self.length)


Examples = TableExamples | TokenExamples


def examples(dataset: Artifact, split: str, context: int | None) -> Examples:
    """The examples of a split; `context` is the window's length where the dataset holds tokens."""
    if dataset.facts["form"] == "tokens":
        assert context is not None
        return TokenExamples(dataset, split, context)
    return TableExamples(dataset, split)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, "model", "order", epoch))
