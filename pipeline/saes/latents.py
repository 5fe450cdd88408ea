"""The latents of a batch while training, few of them active: an architecture's formula is written once, and the products are dense or
sparse, whichever is the faster (kernels.py).

`values` are (N,), those of the active pairs in order, or dense (B, M) and zero elsewhere. Activation functions with settings of each latent
take `spread(settings_M)` beside the values.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.saes import kernels


_NONE = torch.empty(0, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class Latents:
    """Values on some pairs (row, latent), which are its support; 0 elsewhere."""

    values: Tensor
    active: kernels.Active | None
    """The support of sparse values; None where they are dense."""
    mask_BM: Tensor
    """The support of dense values."""

    def replaced(self, values: Tensor) -> "Latents":
        """Other values on the same support."""
        return replace(self, values=values if self.active else values * self.mask_BM)

    def spread(self, each_M: Tensor) -> Tensor:
        """A number of each latent, at the values."""
        return each_M if self.active is None else kernels.at_pairs(each_M, self.active)

    def decode(self, W_dec: Tensor) -> Tensor:
        """`f @ W_dec` (B, E)."""
        return self.values @ W_dec if self.active is None else kernels.decode_at(self.values, W_dec, self.active)

    def fired(self) -> Tensor:
        """In how many rows each latent is not zero (M,)."""
        values = self.values.detach()
        return (values != 0).sum(0) if self.active is None else self.active.count(values != 0)


def where(mask_BM: Tensor, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    """Pre-activations where a mask is true. `pre_BM` is `x @ W_enc + b_enc`; gradients reach x, W_enc and b_enc."""
    if kernels.pays(int(mask_BM.sum()), *mask_BM.shape):
        return at(kernels.Active.where(mask_BM), x_BD, W_enc, b_enc, pre_BM)
    return Latents(pre_BM * mask_BM, None, mask_BM)


def chosen(index_BK: Tensor, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    """Pre-activations of K latents in each row, as `where`."""
    if kernels.pays(index_BK.numel(), *pre_BM.shape):
        return at(kernels.Active.chosen(index_BK, pre_BM.shape[1]), x_BD, W_enc, b_enc, pre_BM)
    mask_BM = torch.zeros_like(pre_BM, dtype=torch.bool).scatter(1, index_BK, True)
    return Latents(pre_BM * mask_BM, None, mask_BM)


def at(active: kernels.Active, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    """Pre-activations at some pairs, sparse."""
    return Latents(kernels.encode_at(x_BD, W_enc, b_enc, pre_BM, active), active, _NONE)
