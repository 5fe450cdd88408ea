"""Decoders whose rows are kept at norm 1."""

import torch
from torch import Tensor


@torch.no_grad()
def remove_parallel(W_dec: Tensor) -> None:
    """Takes out of the gradient its part along each row (of norm 1): what would only change norms, which `renormalise` undoes, but
    counts in Adam's moments."""
    if W_dec.grad is not None:
        W_dec.grad.addcmul_(W_dec, torch.linalg.vecdot(W_dec.grad, W_dec).unsqueeze(1), value=-1)


@torch.no_grad()
def renormalise(W_dec: Tensor) -> None:
    """Brings each row to norm 1, in place."""
    W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W_dec.dtype).tiny))
