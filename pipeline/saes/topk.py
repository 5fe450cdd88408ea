"""TopK SAE (Gao et al. 2024, arXiv 2406.04093).

- the k largest pre-activations survive, then ReLU: fewer than k latents fire when few are positive
- the loss is the error as a share of the activations' variance; there is no penalty
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.saes.base import SAE, Losses
from pipeline.study.saes.topk import TopK as Spec


class Module(SAE):
    architecture = "topk"

    def __init__(self, spec: Spec, width: int, latents: int) -> None:
        super().__init__(width, latents)
        self.spec = spec

    def initialise(self, mean_D: Tensor) -> None:
        self.init_tied(self.spec.seed, mean_D)

    def encode(self, x_BD: Tensor) -> Tensor:
        pre_BM = (x_BD - self.b_dec) @ self.W_enc + self.b_enc
        values_BK, index_BK = pre_BM.topk(self.spec.k, dim=1, sorted=False)
        return torch.zeros_like(pre_BM).scatter(1, index_BK, values_BK.relu())

    def losses(self, x_BD: Tensor, variance: float) -> Losses:
        f_BM = self.encode(x_BD)
        squared = (self.decode(f_BM) - x_BD).square().sum()
        error = squared / (len(x_BD) * variance)
        return Losses(error, {"error": error}, f_BM, squared)

    def saelens(self) -> dict[str, Any]:
        return {"apply_b_dec_to_input": True, "k": self.spec.k, "rescale_acts_by_decoder_norm": False}
