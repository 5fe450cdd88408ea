"""Which latents survive of a whole batch (BatchTopK).

The maxima of blocks are looked at first: where the n-th largest maximum is t, the n largest values are at least t, and lie in blocks whose
maximum is. So few values are left to choose from, and the choice is exact. Large batches on a processor need none of it (screen.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.saes.kernels import Active, places

Gathered = Callable[[Tensor], Tensor]
"""Joins the values of all processes that share a batch."""
_BLOCK = 32
"""Latents in a block: of shorter ones PyTorch takes maxima more slowly."""


def alone(value: Tensor) -> Tensor:
    """Of a batch that no other process shares."""
    return value


def batch(pre_BM: Tensor, count: int, gathered: Gathered = alone, rank: int = 0) -> tuple[Active, Tensor]:
    """The pairs that are positive and `among` the `count` largest of the batch, and the smallest value of them (). NaN is kept, and the
    loss tells it."""
    pre_BM = pre_BM.detach()
    row, index, value = _candidates(pre_BM, count)
    inside, smallest = among(value, count, gathered, rank)
    return Active.pairs(row[inside], index[inside], *pre_BM.shape), smallest


def among(value_N: Tensor, count: int, gathered: Gathered = alone, rank: int = 0) -> tuple[Tensor, Tensor]:
    """Which values (N,) are among the `count` largest, and the smallest of these () (0 where there is none). All are positive, or NaN.

    `gathered` joins the values of all processes that share the batch, of which this is number `rank`: the `count` largest are then of all
    of them. Of equal values at the edge the first of the whole batch are kept, so that there are no more than `count`.
    """
    of_all = gathered(value_N)
    if len(of_all) > count:
        edge = of_all.kthvalue(len(of_all) - count + 1).values.nan_to_num(torch.inf, posinf=torch.inf)
    else:
        edge = torch.cat([of_all, of_all.new_full((1,), torch.inf)]).nan_to_num(torch.inf, posinf=torch.inf).amin()
    at_edge = value_N == edge
    room = count - (~(of_all <= edge)).sum() - gathered(at_edge.sum().reshape(1))[:rank].sum()
    inside = ~(value_N <= edge) | (at_edge & (at_edge.cumsum(0) <= room))
    return inside, edge.nan_to_num(posinf=0.0)


def _candidates(pre_BM: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, latent and value of positive pairs, in order, the `count` largest positive values among them; and of those that are NaN."""
    rows, latents = pre_BM.shape
    blocks, rest = divmod(latents, _BLOCK)
    if rest or rows * blocks < 2 * count:
        row, index = places(~(pre_BM <= 0))
        return row, index, pre_BM[row, index]
    maxima = pre_BM.view(rows * blocks, _BLOCK).amax(1)
    largest = maxima.topk(count, sorted=False).values
    low = torch.where(largest.isnan(), torch.inf, largest).amin().clamp_min(0)
    taken = (~((maxima < low) | (maxima <= 0))).nonzero().squeeze(1)
    left = pre_BM.view(-1, _BLOCK).index_select(0, taken)
    block, place = places(~((left < low) | (left <= 0)))
    at = taken[block]
    return at // blocks, at % blocks * _BLOCK + place, left[block, place]
