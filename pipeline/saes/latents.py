"""The latents of a batch while training, few of them active: an architecture's formula is written once, and the products are dense or
sparse, whichever is the faster (kernels.py). What is active is found by the dense product, or from a rough one (screen.py).

`values` are (N,), those of the active pairs in order, or dense (B, M) and zero elsewhere. Activation functions with settings of each latent
take `spread(settings_M)` beside the values.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.saes import compiled, kernels, screen, select
from pipeline.saes.product import kept, product, valued
from pipeline.saes.rectified import rectified

_NONE = torch.empty(0)
_SAMPLE = 64
"""Rows by which the share of active latents is judged: counting all costs as much as a sparse product."""
_FEW = 16
"""The same, where their product comes on top."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Values on some pairs (row, latent), which are its support; 0 elsewhere."""

    values: Tensor
    active: kernels.Active | None
    """The support of sparse values; None where they are dense."""
    over_BM: Tensor
    """Positive on the support of dense values."""
    sums_M: Tensor | None = None
    """Sum of each latent's dense values, where that is known."""
    counts_M: Tensor | None = None
    """In how many rows each latent is not 0, where that is known of dense values."""

    def replaced(self, values: Tensor) -> "Latents":
        """Other values on the same support."""
        return replace(self, values=values if self.active else kept(values, self.over_BM), sums_M=None, counts_M=None)

    def spread(self, each_M: Tensor) -> Tensor:
        """A number of each latent, at the values."""
        return each_M if self.active is None else kernels.at_pairs(each_M, self.active)

    def decode(self, W_dec: Tensor) -> Tensor:
        """`f @ W_dec` (B, E)."""
        return product(self.values, W_dec) if self.active is None else kernels.decode_at(self.values, W_dec, self.active)

    def errors(self, W_dec: Tensor, b_dec: Tensor, wanted_BE: Tensor, *others: "Latents") -> tuple[Tensor, Tensor]:
        """Squared error of `f @ W_dec + b_dec` over the batch, and of others on the same support (C,), whose gradients reach their values
        alone; and the error (B, E), without a gradient."""
        values = (self.values, *(other.values for other in others))
        if self.active is not None and (found := kernels.errors_at(W_dec, b_dec, wanted_BE, self.active, *values)) is not None:
            return found
        errors = [self.decode(W_dec) + b_dec - wanted_BE]
        errors += [other.decode(W_dec.detach()) + b_dec.detach() - wanted_BE.detach() for other in others]
        return torch.stack([error.square().sum() for error in errors]), errors[0].detach()

    def sums(self) -> Tensor:
        """Sum of each latent's values over the rows (M,)."""
        if self.active is not None:
            return kernels.sums_at(self.values, self.active)
        return self.values.sum(0) if self.sums_M is None else self.sums_M

    def total(self) -> Tensor:
        """Sum of all values ()."""
        return self.values.sum() if self.sums_M is None else self.sums_M.sum()

    def dense(self) -> Tensor:
        """(B, M)."""
        return self.values if self.active is None else self.active.dense(self.values)

    def between(self, low: int, high: int) -> "Latents":
        """Those of latents low..high-1 alone, which become 0..high-low-1."""
        if self.active is None:
            return Latents(self.values[:, low:high], None, self.over_BM[:, low:high])
        active, inside_N = self.active.between(low, high)
        return Latents(self.values[inside_N], active, _NONE)

    def fired(self) -> Tensor:
        """In how many rows each latent is not zero (M,)."""
        values = self.values.detach()
        if self.active is not None:
            return self.active.count(values != 0)
        if self.counts_M is not None:
            return self.counts_M.long()
        # exact up to 2^24 rows, and faster than counting what differs from 0; NaN is told by the loss
        return values.sign().abs_().sum(0).nan_to_num_().long()


def above(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor) -> Latents:
    """Pre-activations `x @ W_enc + b_enc` where they are positive."""
    pre, bias_M = unrectified(x_BD, W_enc, b_enc)
    return positive(pre.values, bias_M) if pre.active is None else pre


def positive(pre_BM: Tensor, bias_M: Tensor | None) -> Latents:
    """Dense pre-activations, and what is to be added to them, where they are positive. Nobody reads `pre_BM` after it."""
    f_BM, sums_M, counts_M = rectified(pre_BM, bias_M)
    return Latents(f_BM, None, f_BM.detach(), sums_M, counts_M)


def unrectified(
    x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, floor_M: Tensor | None = None, precise: bool = False
) -> tuple[Latents, Tensor | None]:
    """Pre-activations where they are larger than `floor` (0), or all, dense and their own, for an activation function that is 0 below it;
    and the bias that it has to add to these, where adding in the loop that takes the function saves a pass over them. `precise`: in their
    own precision under autocast too."""
    x, W, b, floor = x_BD.detach(), W_enc.detach(), b_enc.detach(), None if floor_M is None else floor_M.detach()
    with torch.autocast(x.device.type, enabled=False) if precise else nullcontext():
        if screen.pays(x, W, 0.0):
            some_RM = _over(product(x[:: max(1, len(x) // _FEW)], W, b), floor)
            share = (some_RM > 0).sum().item() / some_RM.numel()
            if screen.pays(x, W, share * W.shape[1]) and (found := screen.above(x, W, b, floor, share * W.shape[1])):
                return known(*found, x_BD, W_enc, b_enc), None
        apart = compiled.pays(len(x) * W.shape[1], x, b)
        pre_BM = product(x, W, None if apart else b)
        some_RM = pre_BM[:: max(1, len(pre_BM) // _SAMPLE)]
        sample = _over(some_RM + b if apart else some_RM, floor)
        if kernels.pays(int((sample > 0).sum()), *sample.shape):
            pre_BM = pre_BM.add_(b) if apart else pre_BM
            return _sparse(kernels.Active.where(_over(pre_BM, floor) > 0), x_BD, W_enc, b_enc, pre_BM), None
        pre_BM = valued(x_BD, W_enc, None if apart else b_enc, pre_BM)
    return Latents(pre_BM, None, _NONE), b_enc if apart else None


def _over(pre_BM: Tensor, floor_M: Tensor | None) -> Tensor:
    return pre_BM if floor_M is None else pre_BM - floor_M


def largest(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, signed: bool = False) -> Latents:
    """The k largest pre-activations of each row; of the positive ones unless `signed`."""
    x, W, b = x_BD.detach(), W_enc.detach(), b_enc.detach()
    if screen.pays(x, W, k) and (found := screen.largest(x, W, b, k, signed)):
        return known(*found, x_BD, W_enc, b_enc)
    pre_BM = product(x, W, b)
    index_BK = pre_BM.topk(k, dim=1, sorted=False).indices
    f = at(kernels.Active.chosen(index_BK, W.shape[1]), x_BD, W_enc, b_enc, pre_BM)
    return f if signed else f.replaced(f.values.relu())


def largest_of_batch(
    x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, count: int, gathered: select.Gathered = select.alone, rank: int = 0
) -> tuple[Latents, Tensor]:
    """The `count` largest positive pre-activations of a batch, and the smallest of them (); `gathered` and `rank` as in select.py."""
    x, W, b = x_BD.detach(), W_enc.detach(), b_enc.detach()
    if screen.pays(x, W, count / max(1, len(x))) and (found := screen.largest_of_batch(x, W, b, count)):
        active, values_N = found
        kept_N, smallest = select.among(values_N, count, gathered, rank)
        return known(*active.kept(kept_N, values_N), x_BD, W_enc, b_enc), smallest
    pre_BM = product(x, W, b)
    active, smallest = select.batch(pre_BM, count, gathered, rank)
    return at(active, x_BD, W_enc, b_enc, pre_BM), smallest


def at(active: kernels.Active, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    """Pre-activations at some pairs; `pre_BM` is the value of `x @ W_enc + b_enc`, and gradients reach x, W_enc and b_enc, not it."""
    if kernels.pays(len(active.index), *pre_BM.shape):
        return _sparse(active, x_BD, W_enc, b_enc, pre_BM)
    over_BM = active.dense(torch.ones(len(active.index), dtype=pre_BM.dtype, device=pre_BM.device))
    return Latents(kept(valued(x_BD, W_enc, b_enc, pre_BM), over_BM), None, over_BM)


def known(active: kernels.Active, values_N: Tensor, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor) -> Latents:
    """Pre-activations at some pairs, whose values are known."""
    return Latents(kernels.encode_at(x_BD, W_enc, b_enc, values_N, active), active, _NONE)


def _sparse(active: kernels.Active, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor) -> Latents:
    return known(active, active.values_of(pre_BM), x_BD, W_enc, b_enc)
