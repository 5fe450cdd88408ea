"""Matryoshka BatchTopK SAE (Bussmann et al. 2025, arXiv 2503.17547).

- the latents are cut into nested prefixes, each of which has to reconstruct alone: general latents come first, and are not absorbed by
  special ones
- selection, threshold and what is saved are BatchTopK's (batchtopk.py), over all latents at once; a prefix' reconstruction is that of the
  one before and what its further latents add, a sparse product each
- the loss is the mean of the prefixes' errors, as in dictionary-learning (the paper and SAELens: their sum), so that AuxK's weight and
  the clipping of gradients mean what they mean for BatchTopK
"""

from itertools import pairwise

import torch
from torch import Tensor

from pipeline.saes import auxk, batchtopk
from pipeline.saes.base import Losses, Step, error_share
from pipeline.study.saes.matryoshka import Matryoshka as Spec


class Module(batchtopk.Module):
    spec: Spec

    def losses(self, x_BD: Tensor, y_BE: Tensor, at: Step) -> Losses:
        centred_BD, f = self.survivors(x_BD, at)
        error_BE = self.b_dec - self.wanted(x_BD, y_BE)
        sizes, squares = [0, *self.spec.sizes(len(self.W_dec))], []
        for (low, high), W_dec in zip(pairwise(sizes), self.W_dec.split([high - low for low, high in pairwise(sizes)]), strict=True):
            error_BE = error_BE + f.between(low, high).decode(W_dec)
            squares.append(error_BE.square().sum())
        errors = [error_share(squared, len(x_BD), at.variance) for squared in squares]
        parts = {"error": errors[-1], **auxk.part(self, centred_BD, error_BE, at)}
        parts |= {f"error_{number}": error for number, error in enumerate(errors[:-1])}
        total = torch.stack(errors).mean() + self.spec.auxk * parts.get("auxk", 0.0)
        return Losses(total, parts, f.fired(), squares[-1])
