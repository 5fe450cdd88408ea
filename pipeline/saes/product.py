"""The dense product, by the fastest library that PyTorch brings.

On x86 processors that are not Intel's, MKL, which PyTorch takes for float32, reaches half the speed of oneDNN, which it brings too
(benchmarks/sae_step.py prints ours beside PyTorch's); on Intel's they are alike, but for a first factor that is transposed, of which oneDNN
makes a copy. Both add in float32; the order differs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.training.device import has_bfloat16, is_intel

_ONEDNN: list[torch.dtype] = []
"""What it multiplies, and faster."""
if torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _ONEDNN += [torch.float32] * (not is_intel()) + [torch.bfloat16] * has_bfloat16(torch.device("cpu"))


def product(a_BD: Tensor, b_DM: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """`a @ b + bias` (B, M), with gradients of all three. In the precision of `a`; under autocast computed in that of autocast."""
    return _Product.apply(a_BD, b_DM, bias_M)


def valued(a_BD: Tensor, b_DM: Tensor, bias_M: Tensor | None, value_BM: Tensor) -> Tensor:
    """`a @ b + bias`, given its value; gradients reach a, b and bias."""
    return _Valued.apply(a_BD, b_DM, bias_M, value_BM)


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


def _gradients(ctx: Any, grad_BM: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    a_BD, b_DM = ctx.saved_tensors[:2]
    of_a, of_b, of_bias = ctx.needs_input_grad[:3]
    grad_a = _times(grad_BM, b_DM.T, None, ctx.autocast) if of_a else None
    grad_b = None
    if of_b:  # laid out as b is, so that it becomes the gradient without a copy
        by_row = b_DM.is_contiguous()
        grad_b = _times(a_BD.T, grad_BM, None, ctx.autocast) if by_row else _times(grad_BM.T, a_BD, None, ctx.autocast).T
    return grad_a, grad_b, grad_BM.sum(0) if of_bias else None


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


class _Valued(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_BD: Tensor, b_DM: Tensor, bias_M: Tensor | None, value_BM: Tensor) -> Tensor:
        ctx.save_for_backward(a_BD, b_DM)
        ctx.autocast = _autocast(a_BD)
        return value_BM.view_as(value_BM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, grad_BM), None)
