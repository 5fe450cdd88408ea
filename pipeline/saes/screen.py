"""Which latents are active, and their pre-activations, without the dense product in float32: several times as fast on
processors that multiply in bfloat16.

The product in bfloat16 is wrong by a bounded amount. With x = x' + dx and w = w' + dw, where x' and w' are rounded,

    |x'w' - xw| <= |x'||dw| + |dx||w|

and what adding in float32 and rounding the sum add is small beside it. So whatever may be among the k largest, or reach a floor, is known;
of these candidates, about half as many again, the pre-activations are computed in float32, and the choice is exact. What rows have in
common is taken out first: beside a large mean that the bias cancels, all would be candidates.

Elsewhere the product is in float32, and its upper halves take the place of the one in bfloat16: choosing is quicker among them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.saes import choosing, compiled
from pipeline.saes.kernels import Active
from pipeline.saes.product import halves, has_halves, product

LEAST = 2**20
"""Pre-activations of a batch from which it pays."""
_MOST = 1 / 32
"""Share of latents, candidates among them, up to which it pays."""
_ROOM = 4
"""Candidates there is room for, times as many as are wanted."""
_SAMPLE = 128
"""Rows by which the threshold of a batch is guessed."""
_MORE = (1.15, 1.5, 2.0)
"""How many values the guess leaves, times as many as are wanted: the next, where they were too few."""
_TINY = 1e-15
"""Norms below which their squares are too small for float32."""
_HALF = 2.0**-8
"""What rounding to bfloat16 changes, as a share of a number, at most."""


def pays(x_BD: Tensor, W_enc: Tensor, active: float) -> bool:
    """Whether this is the way to `active` latents of each row."""
    plain = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in (x_BD, W_enc))
    latents = W_enc.shape[1]
    return plain and len(x_BD) * latents >= LEAST and active <= _MOST * latents


@dataclass(frozen=True, eq=False)
class Rough:
    """Pre-activations of a batch, nearly."""

    keys_BM: Tensor
    """The upper halves of the numbers, int16."""
    share: float
    """How far the numbers are off at most, as a share of themselves,"""
    off_B: Tensor
    """and beyond that, in each row."""
    exact: Callable[[Active], Tensor]
    """Pre-activations at pairs (N,)."""

    def candidates(self, wanted: float, k: int = 0, signed: bool = False, floor: float = 0.0) -> Active | None:
        """Pairs that may be among the k largest of their row (of the positive ones unless `signed`), or, with k 0, reach `floor`; None
        where they are not known, or far more than are `wanted` in a row."""
        rows, latents = self.keys_BM.shape
        room = min(latents, int(_ROOM * wanted) + 64)
        place, count_B = np.empty(rows * room, np.int32), np.empty(rows, np.int64)
        guess = choosing.edge(self.keys_BM[0].contiguous().numpy(), k, k + k // 8, np.int32(choosing.GUESS)) if k else 0
        given = (self.keys_BM, np.float32(self.share), self.off_B, k, signed, np.int32(guess or choosing.GUESS), np.float32(floor), room)
        compiled.parallel(choosing.candidates, rows, *given, place, count_B)
        return None if (count_B < 0).any() else _packed(latents, count_B, room, place)[0]


def rough(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor) -> Rough:
    """`x @ W_enc + b_enc`, nearly. Without products in bfloat16 as good as it is, under autocast in that of autocast."""
    if not has_halves():
        pre_BM = product(x_BD, W_enc, b_enc)
        return Rough(
            pre_BM.view(torch.int16).view(*pre_BM.shape, 2)[:, :, 1], 2 * _HALF, torch.zeros(len(x_BD)), lambda at: at.values_of(pre_BM)
        )
    with torch.autocast("cpu", enabled=False):
        return _by_halves(x_BD, W_enc, b_enc)


def _by_halves(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor) -> Rough:
    mean_D, directions_MD = _middle(x_BD), W_enc.T.contiguous()
    x, w = _rounded(x_BD, mean_D, mean_D), _rounded(directions_MD, torch.zeros_like(mean_D), mean_D)
    bias_M = b_enc + w.along
    rough_BM = halves(x.half, w.half.T, bias_M)
    most, lost = w.norm.max(), w.lost.max()
    adding = x_BD.shape[1] * torch.finfo(torch.float32).eps * ((x.norm + x.lost + mean_D.norm()) * most + bias_M.abs().max())
    off_B = (x.norm + x.lost) * lost + x.lost * most + adding
    tiny_B = x.norm < _TINY
    if tiny_B.any() or most < _TINY:
        off_B = off_B.masked_fill(tiny_B & (x_BD != mean_D).any(1) | (most < _TINY), torch.inf)
    return Rough(rough_BM.view(torch.int16), _HALF, off_B, lambda at: at.inner(x_BD, directions_MD) + b_enc[at.index])


def _middle(x_BD: Tensor) -> Tensor:
    """The mean of rows, of which none counts as longer than the median: a first token may be a thousand times as long as all others."""
    length_B = x_BD.norm(dim=1)
    weight_B = (length_B.median() / length_B).clamp_max(1.0).nan_to_num(1.0)
    return weight_B @ x_BD / weight_B.sum()


def largest(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, signed: bool) -> tuple[Active, Tensor] | None:
    """The k largest of each row, of the positive ones unless `signed`, and their values (N,); None where they are not known so."""
    found = rough(x_BD, W_enc, b_enc)
    at = found.candidates(k, k, signed)
    if at is None:
        return None
    values_N, rows = found.exact(at), len(x_BD)
    place, value, count_B = np.empty(rows * k, np.int32), np.empty(rows * k, np.float32), np.empty(rows, np.int64)
    longest = int(at.starts.diff().amax())
    compiled.parallel(choosing.largest, rows, *at.compact, values_N, longest, k, signed, place, value, count_B)
    return _packed(at.latents, count_B, k, place, value)


def largest_of_batch(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, count: int) -> tuple[Active, Tensor] | None:
    """Pairs that are positive, the `count` largest of the batch among them, and their values (N,); None where they are not known so."""
    found, rows = rough(x_BD, W_enc, b_enc), len(x_BD)
    sample_RM = found.keys_BM[:: max(1, rows // _SAMPLE)].contiguous()
    for more in _MORE:
        number = int(more * count * len(sample_RM) / rows)
        key = choosing.edge(sample_RM.flatten().numpy(), number, number + number // 16, np.int32(choosing.GUESS))
        floor = np.array(key << 16, np.int32).view(np.float32).item()
        at = found.candidates(more * count / rows, floor=floor)
        if at is None:
            return None
        values_N = found.exact(at)
        reaching = (values_N >= floor).sum()
        if reaching >= count or floor == 0:
            return _positive(at, values_N)
    return None


def above(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, floor_M: Tensor | None, wanted: float) -> tuple[Active, Tensor] | None:
    """Pairs whose pre-activations are larger than `floor` (0), and these (N,); None where they are not known so, or far more than
    `wanted` in a row."""
    found = rough(x_BD, W_enc, b_enc if floor_M is None else b_enc - floor_M)
    at = found.candidates(wanted)
    if at is None:
        return None
    active, over_N = _positive(at, found.exact(at))
    return active, over_N if floor_M is None else over_N + floor_M[active.index]


@dataclass(frozen=True, eq=False)
class _Rounded:
    half: Tensor
    norm: Tensor
    lost: Tensor
    along: Tensor


def _rounded(x_ND: Tensor, shift_D: Tensor, along_D: Tensor) -> _Rounded:
    half, (norm, lost, along) = torch.empty(x_ND.shape, dtype=torch.bfloat16), (torch.empty(len(x_ND)) for _ in range(3))
    compiled.parallel(choosing.rounded, len(x_ND), x_ND, shift_D, along_D, half.view(torch.int16), norm, lost, along)
    return _Rounded(half, norm, lost, along)


def _positive(at: Active, values_N: Tensor) -> tuple[Active, Tensor]:
    rows, room = at.rows, int(at.starts.diff().amax())
    place, value, count_B = np.empty(rows * room, np.int32), np.empty(rows * room, np.float32), np.empty(rows, np.int64)
    compiled.parallel(choosing.positive, rows, *at.compact, values_N, room, place, value, count_B)
    return _packed(at.latents, count_B, room, place, value)


def _packed(latents: int, count_B: np.ndarray, room: int, *loose: np.ndarray) -> tuple[Any, ...]:
    """Pairs of which each row has `count`, and what there is of each beside the latent, from the room that rows of a stretch share."""
    starts = np.zeros(len(count_B) + 1, np.int64)
    np.cumsum(count_B, out=starts[1:])
    edges = compiled.stretches(len(count_B))
    parts = [slice(low * room, low * room + starts[high] - starts[low]) for low, high in pairwise(edges)]
    index, *others = (torch.from_numpy(np.concatenate([each[part] for part in parts])) for each in loose)
    return Active(len(count_B), latents, torch.from_numpy(starts), index), *others
