"""ReLU of dense pre-activations, and what is summed of it over a batch."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.saes import compiled, dense


def rectified(pre_BM: Tensor, bias_M: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """relu(pre + bias); of each latent (M,) its sum and in how many rows it is not 0, where the pass that takes the one tells the others.
    It may take the place of `pre`, which nobody reads after it."""
    if bias_M is not None and compiled.pays(pre_BM.numel(), pre_BM, bias_M):
        return _Rectified.apply(pre_BM, bias_M)
    return (pre_BM if bias_M is None else pre_BM + bias_M).relu(), None, None


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_BM: Tensor, bias_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f_BM, sums_M, counts_M = pre_BM.detach(), torch.empty_like(bias_M), torch.empty(len(bias_M), dtype=torch.int32)
        compiled.parallel(dense.relu, len(bias_M), f_BM, bias_M, counts_M, sums_M)
        ctx.save_for_backward(f_BM)
        ctx.mark_non_differentiable(counts_M)
        return f_BM, sums_M, counts_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BM: Tensor, grad_M: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        (f_BM,) = ctx.saved_tensors
        out_BM, sums_M = torch.empty_like(f_BM), torch.empty_like(grad_M)
        compiled.parallel(dense.relu_back, len(sums_M), f_BM, grad_BM.contiguous(), grad_M.contiguous(), out_BM, sums_M)
        return out_BM, sums_M
