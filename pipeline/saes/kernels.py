"""Products with latents of which few are active.

Only the encoder's product is dense; what follows touches the active latents alone: N of the B x M. Each function has a dense
form of one line, which tests compare with (values and gradients, in float64).

- decode: sums of gathered decoder rows (embedding_bag)
- gradient of the active values: N inner products of D (compiled.py; sampled_addmm), of squared errors taken with the decoding
- gradients of the two weight matrices: sums of gathered rows of the batch, by latent (embedding_bag over the transposed pairs)

All of them are PyTorch's own on every device; for large batches on a processor some are loops of compiled.py. There they give the same bits
each time: each sum is taken in one order.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from pipeline.saes import compiled

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

SPARSE_BELOW = 0.06
"""Share of active latents under which the sparse products are the faster ones."""


_TRANSPOSED_FROM = 2**14
"""Pairs from which a loop puts them in order of latents sooner than a sort."""
_TILES_PAY = 12
"""Pairs that a row has in a tile of W_dec from which sums and their gradients, each by tiles, are faster than both together."""
_WORD = 8
"""Entries of a mask that one integer holds."""


def pays(active: float, rows: int, latents: int) -> bool:
    """Whether the sparse products are the faster ones."""
    return active < SPARSE_BELOW * rows * latents


def places(mask_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of what is true, in order. On a processor `nonzero` takes a byte at a time, so that eight are looked at together
    first: few are true."""
    columns = mask_BM.shape[1]
    if mask_BM.is_cuda or columns % _WORD or not mask_BM.is_contiguous():
        row, column = mask_BM.nonzero().unbind(1)
        return row.contiguous(), column.contiguous()
    word = mask_BM.view(torch.int64).flatten().nonzero().squeeze(1)
    which, place = mask_BM.view(-1, _WORD).index_select(0, word).nonzero().unbind(1)
    at = word[which].mul_(_WORD).add_(place)
    row = at.div(columns, rounding_mode="floor")
    return row, at.sub_(row, alpha=columns)


@dataclass(frozen=True, eq=False)
class Active:
    """Which latents are active in which rows: N pairs, ordered by row."""

    rows: int
    latents: int
    starts: Tensor
    """Where each row's pairs begin (B + 1,)."""
    index: Tensor
    """Latent of each pair (N,)."""

    def kept(self, mask_N: Tensor, values_N: Tensor) -> tuple["Active", Tensor]:
        """The pairs where a mask is true, and their values."""
        starts = torch.nn.functional.pad(mask_N.cumsum(0), (1, 0))[self.starts]
        return Active(self.rows, self.latents, starts, self.index[mask_N]), values_N[mask_N]

    @classmethod
    def where(cls, mask_BM: Tensor) -> "Active":
        """The pairs where a mask is true."""
        return cls.pairs(*places(mask_BM), *mask_BM.shape)

    @classmethod
    def pairs(cls, row_N: Tensor, index_N: Tensor, rows: int, latents: int) -> "Active":
        """Pairs that are in order of their rows."""
        return cls(rows, latents, torch.searchsorted(row_N, torch.arange(rows + 1, device=row_N.device)), index_N)

    @classmethod
    def chosen(cls, index_BK: Tensor, latents: int) -> "Active":
        """K latents in each row."""
        rows, k = index_BK.shape
        return cls(rows, latents, torch.arange(0, rows * k + 1, k, device=index_BK.device), index_BK.flatten())

    @cached_property
    def row(self) -> Tensor:
        """Row of each pair (N,)."""
        rows = torch.arange(self.rows, device=self.index.device)
        return torch.repeat_interleave(rows, self.starts.diff(), output_size=len(self.index))

    @cached_property
    def compact(self) -> tuple[Tensor, Tensor]:
        """`starts` and `index` in the integers that products read fastest."""
        return self.starts.int().contiguous(), self.index.int().contiguous()

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transpose: where each latent's pairs begin (M + 1,), their rows, and the order that sorts pairs so; as `compact`."""
        if len(self.index) >= _TRANSPOSED_FROM and not self.index.is_cuda:
            found = compiled.transpose(self.compact[0].numpy(), self.compact[1].numpy(), self.latents)
            return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(found[2])
        order = self.compact[1].argsort(stable=True)
        starts = torch.nn.functional.pad(torch.bincount(self.index, minlength=self.latents).cumsum(0), (1, 0))
        return starts.int(), self.row[order].int(), order.int()

    def between(self, low: int, high: int) -> tuple["Active", Tensor]:
        """The pairs of latents low..high-1, which become 0..high-low-1, and which of these pairs (N,) they are."""
        inside_N = (self.index >= low) & (self.index < high)
        starts = torch.nn.functional.pad(inside_N.cumsum(0), (1, 0))[self.starts]
        return Active(self.rows, high - low, starts, self.index[inside_N] - low), inside_N

    def times(self, values_N: Tensor, dense_MD: Tensor) -> Tensor:
        """Sparse (B, M) times dense (M, D)."""
        return _bags(*self.compact, values_N, dense_MD)

    def transposed_times(self, values_N: Tensor, dense_BD: Tensor) -> Tensor:
        """Sparse (M, B) times dense (B, D)."""
        starts, rows, order = self.by_latent
        return _bags(starts, rows, values_N[order], dense_BD)

    def inner(self, left_BD: Tensor, right_MD: Tensor) -> Tensor:
        """Inner product of each pair's rows (N,)."""
        if compiled.pays(len(self.index) * left_BD.shape[1], left_BD, right_MD):
            return self._looped(compiled.inner, left_BD, right_MD)
        values = left_BD.new_zeros(len(self.index))
        pattern = torch.sparse_csr_tensor(*self.compact, values, (self.rows, self.latents), check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, left_BD, right_MD.T, beta=0.0).values()

    def values_of(self, dense_BM: Tensor) -> Tensor:
        """What a dense matrix has at the pairs (N,)."""
        if compiled.pays(dense_BM.numel(), dense_BM):
            return self._looped(compiled.values_at, dense_BM)
        return dense_BM[self.row, self.index]

    def _looped(self, loop: Callable[..., None], *given: Tensor) -> Tensor:
        out = torch.empty(len(self.index))
        compiled.parallel(loop, self.rows, *given, *self.compact, out)
        return out

    def sums(self, values_N: Tensor) -> Tensor:
        """Sum of each latent's values (M,)."""
        if len(values_N) >= _TRANSPOSED_FROM and values_N.device.type == "cpu":
            return torch.from_numpy(compiled.by_latent(self.compact[1].numpy(), values_N.detach().numpy(), self.latents)).to(values_N.dtype)
        starts, _, order = self.by_latent
        return _bags(starts, order, None, values_N.unsqueeze(1)).squeeze(1)

    def dense(self, values_N: Tensor) -> Tensor:
        """Dense (B, M)."""
        return values_N.new_zeros(self.rows, self.latents).index_put((self.row, self.index), values_N)

    def count(self, mask_N: Tensor | None = None) -> Tensor:
        """Rows in which each latent is active (M,); of the pairs where a mask is true."""
        return torch.bincount(self.index if mask_N is None else self.index[mask_N], minlength=self.latents)


def _bags(starts: Tensor, index_N: Tensor, weights_N: Tensor | None, table: Tensor) -> Tensor:
    """Weighted sums of rows of a table, one for each stretch of the pairs; 0 for an empty one."""
    stretches = len(starts) - 1
    if (
        weights_N is not None
        and compiled.pays(len(index_N) * table.shape[1], table)
        and compiled.tiles_pay(len(index_N), stretches, table.detach().numpy(), 6)
    ):
        out = torch.empty(stretches, table.shape[1])
        compiled.parallel(compiled.sums, stretches, starts, index_N, weights_N, table, out)
        return out
    weights_N = None if weights_N is None else weights_N.detach()  # what needs a gradient is summed by a slower kernel
    return embedding_bag(index_N, table.detach(), starts, mode="sum", per_sample_weights=weights_N, include_last_offset=True)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, values_N: Tensor, active: Active) -> Tensor:
        ctx.save_for_backward(x_BD, W_enc)
        ctx.active = active
        return values_N.view_as(values_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, W_enc = ctx.saved_tensors
        active = ctx.active
        grad_x = active.times(grad_N, W_enc.T) if ctx.needs_input_grad[0] else None
        return grad_x, active.transposed_times(grad_N, x_BD).T, active.sums(grad_N), None, None


def encode_at(x_BD: Tensor, W_enc: Tensor, b_enc: Tensor, values_N: Tensor, active: Active) -> Tensor:
    """`x @ W_enc + b_enc` at the active pairs, whose values (N,) are known; gradients reach x, W_enc and b_enc."""
    return _Encode.apply(x_BD, W_enc, b_enc, values_N.detach(), active)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_N: Tensor, W_dec: Tensor, active: Active) -> Tensor:
        ctx.save_for_backward(values_N, W_dec)
        ctx.active = active
        return active.times(values_N, W_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        values_N, W_dec = ctx.saved_tensors
        grad_W = ctx.active.transposed_times(values_N, grad_BD) if ctx.needs_input_grad[1] else None
        return ctx.active.inner(grad_BD, W_dec), grad_W, None


def decode_at(values_N: Tensor, W_dec: Tensor, active: Active) -> Tensor:
    """`f @ W_dec` (B, D) for latents that have `values_N` at the active pairs and are 0 elsewhere."""
    return _Decode.apply(values_N, W_dec, active)


class _Errors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W_dec: Tensor, b_dec: Tensor, wanted_BD: Tensor, active: Active, *values: Tensor) -> tuple[Tensor, Tensor]:
        values_CN = torch.stack(values)
        out_CBD, inner_CN = torch.empty(len(values), *wanted_BD.shape), torch.empty_like(values_CN)
        squared_CB = torch.empty(len(values), active.rows)
        given = (values_CN, W_dec, b_dec, wanted_BD, out_CBD, squared_CB, inner_CN)
        compiled.parallel(compiled.errors, active.rows, *active.compact, *given)
        error_BD = out_CBD[0]
        ctx.save_for_backward(values_CN[0], inner_CN, error_BD)
        ctx.active = active
        ctx.mark_non_differentiable(error_BD)
        return squared_CB.sum(1), error_BD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_C: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        values_N, inner_CN, error_BD = ctx.saved_tensors
        twice_C = 2 * grad_C
        of_W, of_b, of_wanted = ctx.needs_input_grad[:3]
        grad_W = ctx.active.transposed_times(values_N * twice_C[0], error_BD) if of_W else None
        grad_b = error_BD.sum(0).mul_(twice_C[0]) if of_b else None
        return grad_W, grad_b, -twice_C[0] * error_BD if of_wanted else None, None, *(inner_CN * twice_C.unsqueeze(1))


def errors_at(W_dec: Tensor, b_dec: Tensor, wanted_BD: Tensor, active: Active, *values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Squared errors `f @ W_dec + b_dec - wanted`, summed (C,), of C values (N,) of each active pair, and the error of the first (B, D),
    which has no gradient. Gradients reach all values; W_dec, b_dec and `wanted` have that of the first alone. None where decoding is the
    faster way.

    A row's part of W_dec is read from memory once, for its error and for the gradient of its values."""
    if not compiled.pays(len(values[0]) * W_dec.shape[1], W_dec, b_dec, wanted_BD, *values):
        return None
    if len(values) == 1 and compiled.tiles_pay(len(values[0]), active.rows, W_dec.detach().numpy(), _TILES_PAY):
        return None
    return _Errors.apply(W_dec, b_dec, wanted_BD, active, *values)


class _AtPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, each_M: Tensor, active: Active) -> Tensor:
        ctx.active = active
        return each_M[active.index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.active.sums(grad_N), None


def at_pairs(each_M: Tensor, active: Active) -> Tensor:
    """`each[index]` (N,): a number of each latent, at its pairs."""
    return _AtPairs.apply(each_M, active)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_N: Tensor, active: Active) -> Tensor:
        ctx.active = active
        return active.sums(values_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        return grad_M[ctx.active.index], None


def sums_at(values_N: Tensor, active: Active) -> Tensor:
    """Sum of each latent's values (M,)."""
    return _Sums.apply(values_N, active)
