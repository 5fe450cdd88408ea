"""A shard that fills, batch by batch, with the outputs of hooks."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.layout import INDEX, STORED, Layout
from pipeline.activations.sums import Block, Sparse
from pipeline.artifacts.errors import UserError

BITS = {torch.bfloat16: torch.int16}
"""What numpy is given in place of a type that it does not have."""
SPARSE_COPIES = 4
"""Times that a shard's numbers of sparse hooks are held: as they come, joined, on their way to the disk, and as they are encoded."""
TAKEN = 2**22
"""Numbers that are taken out of a hook's output at a time, so that no batch is held twice."""


class Filling:
    """A shard that fills. Its memory is taken again for the next one; `room` is for the numbers of sparse hooks, in bytes."""

    def __init__(self, layout: Layout, room: int) -> None:
        self.layout, self.dtype, self.room = layout, getattr(torch, layout.dtype), room
        most = min(layout.shard_rows, layout.rows)
        dense = {hook: width for hook, width in layout.widths.items() if hook not in layout.sparse}
        self.dense = {hook: torch.empty(most, width, dtype=self.dtype) for hook, width in dense.items()}

    def begin(self, shard: int) -> None:
        """Empties it, for another shard."""
        start, stop = self.layout.span(shard)
        self.rows, self.held, self.sparse_bytes = stop - start, 0, 0
        self.index: dict[str, list[np.ndarray]] = {name: [] for name in INDEX}
        self.sparse: dict[str, list[tuple[np.ndarray, ...]]] = {hook: [] for hook in self.layout.sparse}

    def full(self) -> bool:
        return self.held == self.rows

    def add(self, found: dict[str, Tensor], places: Tensor | None, index: dict[str, np.ndarray], start: int, stop: int) -> int:
        """Takes in rows start .. stop - 1 of a batch, as many as there is room for, and says how many.

        `found` has the outputs of all its positions (positions, width), and `places` says which of them are the rows (all when None).
        """
        count = min(stop - start, self.rows - self.held)
        for hook, values in found.items():
            dense = self.dense.get(hook)
            if dense is not None and places is not None and values.dtype == self.dtype and values.device == dense.device:
                torch.index_select(values, 0, places[start : start + count], out=dense[self.held : self.held + count])
                continue
            into = self.held
            for rows in _taken(values, places, start, start + count):
                if dense is None:
                    self._add_sparse(hook, _sparse(rows.to(self.dtype)))
                else:
                    dense[into : into + len(rows)].copy_(rows)
                into += len(rows)
        for name, column in index.items():
            self.index[name].append(column[start : start + count])
        self.held += count
        return count

    def _add_sparse(self, hook: str, part: tuple[np.ndarray, ...]) -> None:
        self.sparse[hook].append(part)
        self.sparse_bytes += sum(array.nbytes for array in part)
        if SPARSE_COPIES * self.sparse_bytes > self.room:
            raise UserError(
                f"sparse: the numbers of {hook} that are not zero need more than the {self.room / 2**20:,.0f} MiB that memory_mb "
                "leaves for them; raise it, give fewer shard_rows, or keep the hook dense"
            )

    def columns(self) -> dict[str, Block]:
        """What is written."""
        dense: dict[str, Block] = {hook: _numpy(rows[: self.rows]) for hook, rows in self.dense.items()}
        sparse: dict[str, Block] = {
            hook: _joined(self.sparse.pop(hook), width) for hook, width in self.layout.widths.items() if hook in self.sparse
        }
        return {**dense, **sparse, **{name: np.concatenate(parts) for name, parts in self.index.items()}}


def _taken(values: Tensor, places: Tensor | None, start: int, stop: int) -> Iterator[Tensor]:
    """Rows start .. stop - 1, some at a time."""
    step = max(1, TAKEN // values.shape[1])
    for at in range(start, stop, step):
        some = slice(at, min(at + step, stop))
        yield values[some] if places is None else values[places[some]]


def _sparse(rows: Tensor) -> tuple[np.ndarray, ...]:
    """Numbers that are not zero, as stored; their places; how many each row has."""
    at = rows != 0
    places = np.uint16 if rows.shape[1] <= 2**16 else np.uint32
    return _numpy(rows[at].cpu()), at.nonzero()[:, 1].cpu().numpy().astype(places), at.sum(1).cpu().numpy()


def _joined(parts: list[tuple[np.ndarray, ...]], width: int) -> Sparse:
    values, indices, counts = (np.concatenate(one) for one in zip(*parts, strict=True))
    return Sparse(values, indices, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), width)


def _numpy(rows: Tensor) -> np.ndarray:
    bits = BITS.get(rows.dtype)
    return rows.numpy() if bits is None else rows.view(bits).numpy().view(STORED["bfloat16"])
