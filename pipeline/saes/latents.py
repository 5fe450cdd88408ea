"""The latents of a batch while training, few of them active: an architecture's formula is written once, and the products are dense or
sparse, whichever is the faster (kernels.py).

`values` are (N,), those of the active pairs in order, or dense (B, M) and zero elsewhere. Activation functions with settings of each latent
take `spread(settings_M)` beside the values.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.saes import kernels
from pipeline.saes.product import kept, masked, product

_NONE = torch.empty(0)
_SAMPLE = 64
"""Rows by which the share of active latents is judged: counting all costs as much as a sparse product."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Values on some pairs (row, latent), which are its support; 0 elsewhere."""

    values: Tensor
    active: kernels.Active | None
    """The support of sparse values; None where they are dense."""
    over_BM: Tensor
    """Positive on the support of dense values."""

    def replaced(self, values: Tensor) -> "Latents":
        """Other values on the same support."""
        return replace(self, values=values if self.active else kept(values, self.over_BM))

    def spread(self, each_M: Tensor) -> Tensor:
        """A number of each latent, at the values."""
        return each_M if self.active is None else kernels.at_pairs(each_M, self.active)

    def decode(self, W_dec: Tensor) -> Tensor:
        """`f @ W_dec` (B, E)."""
        return product(self.values, W_dec) if self.active is None else kernels.decode_at(self.values, W_dec, self.active)

    def between(self, low: int, high: int) -> "Latents":
        """Those of latents low..high-1 alone, which become 0..high-low-1."""
        if self.active is None:
            return Latents(self.values[:, low:high], None, self.over_BM[:, low:high])
        active, inside_N = self.active.between(low, high)
        return Latents(self.values[inside_N], active, _NONE)

    def sums(self) -> Tensor:
        """Sum of each latent's values over the rows (M,)."""
        return self.values.sum(0) if self.active is None else kernels.sums_at(self.values, self.active)

    def fired(self) -> Tensor:
        """In how many rows each latent is not zero (M,)."""
        values = self.values.detach()
        if self.active is not None:
            return self.active.count(values != 0)
        # exact up to 2^24 rows, and faster than counting what differs from 0; NaN is told by the loss
        return values.sign().abs_().sum(0).nan_to_num_().long()


def where(over_BM: Tensor, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    """Pre-activations where `over_BM` is positive. `pre_BM` is the value of `x @ W_enc + b_enc`; gradients reach x, W_enc and b_enc, not
    it."""
    over_BM = over_BM.detach()
    sample = over_BM[:: max(1, len(over_BM) // _SAMPLE)]
    if kernels.pays(int((sample > 0).sum()), *sample.shape):
        return _sparse(kernels.Active.where(over_BM > 0), x_BD, W_enc, b_enc, pre_BM)
    return Latents(masked(x_BD, W_enc, b_enc, pre_BM, over_BM), None, over_BM)


def at(active: kernels.Active, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    """Pre-activations at some pairs, as `where`."""
    if kernels.pays(len(active.index), *pre_BM.shape):
        return _sparse(active, x_BD, W_enc, b_enc, pre_BM)
    over_BM = active.dense(torch.ones(len(active.index), dtype=pre_BM.dtype, device=pre_BM.device))
    return Latents(masked(x_BD, W_enc, b_enc, pre_BM, over_BM), None, over_BM)


def chosen(index_BK: Tensor, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    """Pre-activations of K latents in each row, as `where`."""
    return at(kernels.Active.chosen(index_BK, pre_BM.shape[1]), x_BD, W_enc, b_enc, pre_BM)


def known(active: kernels.Active, values_N: Tensor, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor) -> Latents:
    """Pre-activations at some pairs, whose values are known."""
    return Latents(kernels.encode_at(x_BD, W_enc, b_enc, values_N, active), active, _NONE)


def _sparse(active: kernels.Active, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    return known(active, pre_BM.detach()[active.row, active.index], x_BD, W_enc, b_enc)
