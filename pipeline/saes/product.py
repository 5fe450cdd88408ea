"""The dense product, by the fastest library that PyTorch brings, and values under a mask.

On x86 processors that are not Intel's, MKL, which PyTorch takes for float32, reaches half the speed of oneDNN, which it brings too
(benchmarks/sae_step.py prints ours beside PyTorch's); on Intel's they are alike, but for a first factor that is transposed, of which oneDNN
makes a copy. Both add in float32; the order differs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.saes import compiled, dense
from pipeline.training.device import has_bfloat16, is_intel

_ONEDNN: list[torch.dtype] = []
"""What it multiplies, and faster."""
if torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _ONEDNN += [torch.float32] * (not is_intel()) + [torch.bfloat16] * has_bfloat16(torch.device("cpu"))


def product(a_BD: Tensor, b_DM: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """`a @ b + bias` (B, M), with gradients of all three. In the precision of `a`; under autocast computed in that of autocast."""
    return _Product.apply(a_BD, b_DM, bias_M)


def product_and_sums(a_BM: Tensor, b_ME: Tensor) -> tuple[Tensor, Tensor]:
    """`a @ b` (B, E) and `a.sum(0)` (M,). The gradient of the sums is added in the product that gives that of a, not in another pass, and
    in its precision."""
    return _ProductAndSums.apply(a_BM, b_ME)


def masked(a_BD: Tensor, b_DM: Tensor, bias_M: Tensor, value_BM: Tensor, over_BM: Tensor | None) -> Tensor:
    """`a @ b + bias` where `over` is positive, else 0, given its value; gradients reach a, b and bias. Everywhere where there is none.
    `over` may be the value, if that is nowhere negative."""
    return _Masked.apply(a_BD, b_DM, bias_M, value_BM, over_BM)


def halves(a_BD: Tensor, b_DM: Tensor, bias_M: Tensor) -> Tensor:
    """`a @ b + bias` of factors in bfloat16 and a bias in float32: the sum is in float32, and rounded once."""
    return _onednn(a_BD, b_DM, bias_M)


def has_halves() -> bool:
    """Whether this machine has that, faster than the product in float32."""
    return torch.bfloat16 in _ONEDNN


def kept(value: Tensor, over: Tensor) -> Tensor:
    """`value` where `over`, of its shape and without a gradient, is positive, else 0; gradients reach `value`. A product with a mask, or
    torch.where, takes several times as long on a processor."""
    return torch.ops.aten.threshold_backward(value, over, 0)


def _times(a: Tensor, b: Tensor, bias: Tensor | None, autocast: torch.dtype | None) -> Tensor:
    if autocast is None and a.device.type == "cpu" and a.dtype == b.dtype and a.dtype in _ONEDNN and a.numel() and b.numel():
        return _onednn(a, b, bias)
    with torch.autocast(a.device.type, autocast, enabled=autocast is not None):
        return (a @ b if bias is None else torch.addmm(bias, a, b)).to(a.dtype)


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    plain = None if bias is None else bias.contiguous()  # it does not look at the strides of a bias
    return torch.ops.mkldnn._linear_pointwise(a, b.T, plain, "none", [], "")


def _autocast(a: Tensor) -> torch.dtype | None:
    kind = a.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _gradients(ctx: Any, grad_BM: Tensor, sums_M: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    a_BD, b_DM = ctx.saved_tensors[:2]
    of_a, of_b, of_bias = ctx.needs_input_grad[:3]
    grad_a = _times(grad_BM, b_DM.T, None, ctx.autocast) if of_a else None
    grad_b = None
    if of_b:  # laid out as b is, so that it becomes the gradient without a copy
        by_row = b_DM.is_contiguous()
        grad_b = _times(a_BD.T, grad_BM, None, ctx.autocast) if by_row else _times(grad_BM.T, a_BD, None, ctx.autocast).T
    grad_bias = (grad_BM.sum(0) if sums_M is None else sums_M) if of_bias else None
    return grad_a, grad_b, grad_bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_BD: Tensor, b_DM: Tensor, bias_M: Tensor | None) -> Tensor:
        ctx.save_for_backward(a_BD, b_DM)
        ctx.autocast = _autocast(a_BD)
        return _times(a_BD, b_DM, bias_M, ctx.autocast)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad_BM)


class _ProductAndSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_BM: Tensor, b_ME: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a_BM, b_ME)
        ctx.autocast = _autocast(a_BM)
        return _times(a_BM, b_ME, None, ctx.autocast), a_BM.sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BE: Tensor, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        a_BM, b_ME = ctx.saved_tensors
        grad_a = _times(grad_BE, b_ME.T, grad_M, ctx.autocast) if ctx.needs_input_grad[0] else None
        return grad_a, _times(a_BM.T, grad_BE, None, ctx.autocast) if ctx.needs_input_grad[1] else None


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_BD: Tensor, b_DM: Tensor, bias_M: Tensor, value_BM: Tensor, over_BM: Tensor) -> Tensor:
        ctx.save_for_backward(a_BD, b_DM, over_BM)
        ctx.autocast = _autocast(a_BD)
        return value_BM.view_as(value_BM) if over_BM is None or over_BM is value_BM else kept(value_BM, over_BM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor | None, ...]:
        over_BM = ctx.saved_tensors[2]
        if over_BM is None:
            return (*_gradients(ctx, grad_BM), None, None)
        if compiled.pays(grad_BM.numel(), grad_BM, over_BM):
            grad, sums_M = torch.empty_like(grad_BM), grad_BM.new_empty(grad_BM.shape[1])
            compiled.parallel(dense.kept, len(sums_M), grad_BM, over_BM, grad, sums_M)
            return (*_gradients(ctx, grad, sums_M), None, None)
        return (*_gradients(ctx, kept(grad_BM, over_BM)), None, None)
