"""Products with latents of which few are active.

Only the encoder's product is dense; what follows touches the active latents alone: N of the B x M. Each function has a dense
form of one line, which tests compare with (values and gradients, in float64).

- decode: sparse (B, M) times dense (M, D)
- gradient of the active values: N inner products of D (sampled_addmm)
- gradients of the two weight matrices: sparse (M, B) times dense (B, D)
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

SPARSE_BELOW = 0.06
"""Share of active latents under which the sparse products are the faster ones."""


def pays(active: int, rows: int, latents: int) -> bool:
    """Whether the sparse products are the faster ones, and there at all (PyTorch's are MKL's)."""
    return torch.backends.mkl.is_available() and active < SPARSE_BELOW * rows * latents


@dataclass(frozen=True, eq=False)
class Active:
    """Which latents are active in which rows: N pairs, ordered by row."""

    rows: int
    latents: int
    starts: Tensor
    """Where each row's pairs begin (B + 1,)."""
    index: Tensor
    """Latent of each pair (N,)."""

    @classmethod
    def where(cls, mask_BM: Tensor) -> "Active":
        """The pairs where a mask is true."""
        starts = torch.zeros(len(mask_BM) + 1, dtype=torch.int64)
        torch.cumsum(mask_BM.sum(1), 0, out=starts[1:])
        rows, latents = mask_BM.shape
        return cls(rows, latents, starts, mask_BM.nonzero()[:, 1].contiguous())

    @classmethod
    def chosen(cls, index_BK: Tensor, latents: int) -> "Active":
        """K latents in each row."""
        rows, k = index_BK.shape
        return cls(rows, latents, torch.arange(0, rows * k + 1, k), index_BK.flatten())

    @cached_property
    def row(self) -> Tensor:
        """Row of each pair (N,)."""
        return torch.repeat_interleave(torch.arange(self.rows), self.starts.diff(), output_size=len(self.index))

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transpose: where each latent's pairs begin (M + 1,), their rows, and the order that sorts pairs so."""
        order = self.index.argsort(stable=True)
        starts = torch.zeros(self.latents + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(self.index, minlength=self.latents), 0, out=starts[1:])
        return starts, self.row[order], order

    def matrix(self, values_N: Tensor) -> Tensor:
        """Sparse (B, M)."""
        return torch.sparse_csr_tensor(self.starts, self.index, values_N, (self.rows, self.latents), check_invariants=False)

    def transposed(self, values_N: Tensor) -> Tensor:
        """Sparse (M, B)."""
        starts, rows, order = self.by_latent
        return torch.sparse_csr_tensor(starts, rows, values_N[order], (self.latents, self.rows), check_invariants=False)

    def dense(self, values_N: Tensor) -> Tensor:
        """Dense (B, M)."""
        return values_N.new_zeros(self.rows, self.latents).index_put((self.row, self.index), values_N)

    def count(self, mask_N: Tensor | None = None) -> Tensor:
        """Rows in which each latent is active (M,); of the pairs where a mask is true."""
        return torch.bincount(self.index if mask_N is None else self.index[mask_N], minlength=self.latents)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor, active: Active) -> Tensor:
        ctx.save_for_backward(x_BD, W_enc)
        ctx.active = active
        return pre_BM[active.row, active.index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, W_enc = ctx.saved_tensors
        grad_x = ctx.active.matrix(grad_N) @ W_enc.T if ctx.needs_input_grad[0] else None
        bias = torch.bincount(ctx.active.index, grad_N, minlength=ctx.active.latents).to(grad_N.dtype)
        return grad_x, (ctx.active.transposed(grad_N) @ x_BD).T, bias, None, None


def encode_at(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, pre_BM: Tensor, active: Active) -> Tensor:
    """`(x @ W_enc + b_enc)` at the active pairs (N,), given its value `pre_BM`; gradients reach x, W_enc and b_enc."""
    return _Encode.apply(x_BD, W_enc, b_enc, pre_BM.detach(), active)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_N: Tensor, W_dec: Tensor, active: Active) -> Tensor:
        ctx.save_for_backward(values_N, W_dec)
        ctx.active = active
        return active.matrix(values_N) @ W_dec

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        values_N, W_dec = ctx.saved_tensors
        pattern = ctx.active.matrix(torch.zeros_like(values_N))
        grad_values = torch.sparse.sampled_addmm(pattern, grad_BD, W_dec.T, beta=0.0).values()
        return grad_values, ctx.active.transposed(values_N) @ grad_BD, None


def decode_at(values_N: Tensor, W_dec: Tensor, active: Active) -> Tensor:
    """`f @ W_dec` (B, D) for latents that have `values_N` at the active pairs and are 0 elsewhere."""
    return _Decode.apply(values_N, W_dec, active)


class _AtPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, each_M: Tensor, active: Active) -> Tensor:
        ctx.active = active
        return each_M[active.index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        return torch.bincount(ctx.active.index, grad_N, minlength=ctx.active.latents).to(grad_N.dtype), None


def at_pairs(each_M: Tensor, active: Active) -> Tensor:
    """`each[index]` (N,): a number of each latent, at its pairs."""
    return _AtPairs.apply(each_M, active)
