"""Decoders whose rows are kept at norm 1."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.saes import compiled


@torch.no_grad()
def remove_parallel(W_dec: Tensor) -> None:
    """Takes out of the gradient its part along each row (of norm 1): what would only change norms, which `renormalise` undoes, but
    counts in Adam's moments."""
    if W_dec.grad is None:
        return
    if compiled.pays(W_dec.numel(), W_dec, W_dec.grad):
        compiled.parallel(compiled.take_along, len(W_dec), W_dec.grad, W_dec)
    else:
        W_dec.grad.addcmul_(W_dec, torch.linalg.vecdot(W_dec.grad, W_dec).unsqueeze(1), value=-1)


@torch.no_grad()
def renormalise(W_dec: Tensor) -> None:
    """Brings each row to norm 1, in place."""
    least = torch.finfo(W_dec.dtype).tiny
    if compiled.pays(W_dec.numel(), W_dec):
        compiled.parallel(compiled.to_norm_one, len(W_dec), W_dec, np.float32(least))
    else:
        W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(least))


class _Norms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W_dec: Tensor) -> Tensor:
        norms_M = W_dec.norm(dim=1)
        ctx.save_for_backward(W_dec, norms_M)
        return norms_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> Tensor:
        W_dec, norms_M = ctx.saved_tensors
        return W_dec * (grad_M / norms_M).where(norms_M > 0, 0.0).unsqueeze(1)


def norms(W_dec: Tensor) -> Tensor:
    """Norm of each row (M,); the gradient of PyTorch's takes several passes over the rows."""
    return _Norms.apply(W_dec)
