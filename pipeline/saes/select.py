"""Which latents survive: the k largest of each row (TopK), or the largest of a whole batch (BatchTopK).

Both first look at the maxima of blocks: where the k-th largest maximum is t, the k largest values are at least t, and lie in blocks whose
maximum is. So few values are left to choose from, and the choice is exact.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.saes.kernels import Active, places

Gathered = Callable[[Tensor], Tensor]
"""Joins the values of all processes that share a batch."""
_BLOCK = 32
"""Latents in a block: of shorter ones PyTorch takes maxima more slowly."""


def rows(pre_BM: Tensor, k: int) -> Tensor:
    """Index (B, K) of the k largest of each row, in no order."""
    pre_BM = pre_BM.detach()
    if pre_BM.is_cuda or not _blocks_pay(pre_BM, k):
        return pre_BM.topk(k, dim=1, sorted=False).indices
    row, index, value = _above(pre_BM, k)
    starts, together_BN = _by_row(row, value, len(pre_BM))
    return index[starts[:-1].unsqueeze(1) + together_BN.topk(k, dim=1, sorted=False).indices]


def _blocks_pay(pre_BM: Tensor, k: int) -> bool:
    rows, latents = pre_BM.shape
    return rows > 0 and latents % _BLOCK == 0 and latents // _BLOCK >= 2 * k and pre_BM.is_contiguous()


def _above(pre_BM: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, latent and value of at least the k largest of each row, and of few more, ordered by row."""
    count, latents = pre_BM.shape
    if not _blocks_pay(pre_BM, k):
        row, index = places(~(pre_BM < pre_BM.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)))
        return row, index, pre_BM[row, index]
    maxima_BK, block_BK = pre_BM.view(count, -1, _BLOCK).amax(2).topk(k, dim=1, sorted=False)
    starts = torch.arange(0, pre_BM.numel() // _BLOCK, latents // _BLOCK, device=pre_BM.device)
    left_BN = pre_BM.view(-1, _BLOCK).index_select(0, (block_BK + starts.unsqueeze(1)).flatten()).view(count, -1)
    row, place = places(~(left_BN < maxima_BK.amin(1, keepdim=True)))  # NaN is kept
    return row, block_BK[row, place // _BLOCK] * _BLOCK + place % _BLOCK, left_BN[row, place]


def _by_row(row_N: Tensor, value_N: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Where each row's values begin, and the values, a row each, filled up with the least there is."""
    starts = torch.searchsorted(row_N, torch.arange(rows + 1, device=row_N.device))
    column = torch.arange(len(row_N), device=row_N.device) - starts[row_N]
    room = value_N.new_full((rows, int(starts.diff().amax())), -torch.inf)
    return starts, room.index_put_((row_N, column), value_N)


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
