"""TopK SAE (Gao et al. 2024, arXiv 2406.04093).

- the k largest pre-activations survive, then ReLU: fewer than k latents fire when few are positive
- the loss is the error as a share of the activations' variance; there is no penalty
- only the encoder's product is dense (kernels.py)
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.saes import kernels
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
        pre_BM = torch.addmm(self.b_enc, x_BD - self.b_dec, self.W_enc)
        values_BK, index_BK = pre_BM.topk(self.spec.k, dim=1, sorted=False)
        return torch.zeros_like(pre_BM).scatter(1, index_BK, values_BK.relu())

    def losses(self, x_BD: Tensor, variance: float) -> Losses:
        centred_BD = x_BD - self.b_dec
        pre_BM = torch.addmm(self.b_enc, centred_BD, self.W_enc)
        values_BK, index_BK = pre_BM.topk(self.spec.k, dim=1, sorted=False)
        if kernels.pays(index_BK.numel(), *pre_BM.shape):
            active = kernels.Active.chosen(index_BK, pre_BM.shape[1])
            values_N = kernels.encode_at(centred_BD, self.W_enc, self.b_enc, pre_BM, active).relu()
            reconstruction_BD = kernels.decode_at(values_N, self.W_dec, active) + self.b_dec
        else:
            reconstruction_BD = self.decode(torch.zeros_like(pre_BM).scatter(1, index_BK, values_BK.relu()))
        squared = (reconstruction_BD - x_BD).square().sum()
        error = squared / (len(x_BD) * variance)
        fired_M = torch.bincount(index_BK[values_BK > 0], minlength=pre_BM.shape[1])
        return Losses(error, {"error": error}, fired_M, squared)

    def saelens(self) -> dict[str, Any]:
        return {"apply_b_dec_to_input": True, "k": self.spec.k, "rescale_acts_by_decoder_norm": False}
