"""TopK SAE (Gao et al. 2024, arXiv 2406.04093).

- the k largest pre-activations survive, then ReLU: fewer than k latents fire when few are positive; or, `signed`, as they are
- the loss is the error as a share of the activations' variance; there is no penalty
- dead latents learn from what the others leave (AuxK, auxk.py)
- only the encoder's product is dense (kernels.py)
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.saes import auxk, latents
from pipeline.saes.base import SAE, Losses, Step, error_share
from pipeline.study.saes.topk import TopK as Spec


class Module(SAE):
    architecture = "topk"
    spec: Spec

    def encode(self, x_BD: Tensor) -> Tensor:
        pre_BM = self.pre(self.centred(x_BD))
        values_BK, index_BK = pre_BM.topk(self.spec.k, dim=1, sorted=False)
        return torch.zeros_like(pre_BM).scatter(1, index_BK, values_BK if self.spec.signed else values_BK.relu())

    def losses(self, x_BD: Tensor, y_BE: Tensor, at: Step) -> Losses:
        centred_BD = self.centred(x_BD)
        pre_BM = self.pre(centred_BD)
        index_BK = pre_BM.detach().topk(at.k or self.spec.k, dim=1, sorted=False).indices
        f = latents.chosen(index_BK, centred_BD, self.W_enc, self.b_enc, pre_BM)
        f = f if self.spec.signed else f.replaced(f.values.relu())
        error_BE = self.reconstruct(f, x_BD) - y_BE
        squared = error_BE.square().sum()
        error = error_share(squared, len(x_BD), at.variance)
        parts = {"error": error, **auxk.part(self, centred_BD, pre_BM, error_BE, at)}
        return Losses(error + self.spec.auxk * parts.get("auxk", torch.zeros(())), parts, f.fired(), squared)

    def saelens(self) -> dict[str, Any]:
        return {**super().saelens(), "k": self.spec.k, "rescale_acts_by_decoder_norm": False}
