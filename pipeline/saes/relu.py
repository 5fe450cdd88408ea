"""ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity").

- the penalty counts a latent by the norm of its decoder row (Conerly et al. 2024, "Update on how we train SAEs"), so that
  decoder rows need no constraint; the published pointer recipe takes the plain sum
- the error is a share of the activations' variance, so that `l1` does not depend on their scale; or, as published, the
  squared error per element
- once few latents are active, only the encoder's product is dense (kernels.py)
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.saes import kernels
from pipeline.saes.base import SAE, Losses
from pipeline.study.saes.relu import ReLU as Spec


class Module(SAE):
    architecture = "standard"

    def __init__(self, spec: Spec, width: int, latents: int) -> None:
        super().__init__(width, latents)
        self.spec = spec

    def initialise(self, mean_D: Tensor) -> None:
        if self.spec.init == "tied":
            self.init_tied(self.spec.seed, mean_D)
        else:
            self.init_linear(self.spec.seed)

    def centred(self, x_BD: Tensor) -> Tensor:
        return x_BD - self.b_dec if self.spec.subtract_b_dec else x_BD

    def encode(self, x_BD: Tensor) -> Tensor:
        return torch.addmm(self.b_enc, self.centred(x_BD), self.W_enc).relu()

    def losses(self, x_BD: Tensor, variance: float) -> Losses:
        centred_BD = self.centred(x_BD)
        pre_BM = torch.addmm(self.b_enc, centred_BD, self.W_enc)
        mask_BM = pre_BM.detach() > 0
        norm_M = self.W_dec.norm(dim=1) if self.spec.penalty == "decoder-norm" else torch.ones_like(self.b_enc)
        if kernels.pays(int(mask_BM.sum()), *mask_BM.shape):
            active = kernels.Active.where(mask_BM)
            values_N = kernels.encode_at(centred_BD, self.W_enc, self.b_enc, pre_BM, active)
            reconstruction_BD = kernels.decode_at(values_N, self.W_dec, active) + self.b_dec
            l1, fired_M = (values_N * norm_M[active.index]).sum() / len(x_BD), active.count()
        else:
            f_BM = pre_BM.relu()
            reconstruction_BD = self.decode(f_BM)
            l1, fired_M = (f_BM @ norm_M).mean(), mask_BM.sum(0)
        squared = (reconstruction_BD - x_BD).square().sum()
        error = squared / (len(x_BD) * variance) if self.spec.error == "variance" else squared / x_BD.numel()
        return Losses(error + self.spec.l1 * l1, {"error": error, "l1": l1}, fired_M, squared)

    def saelens(self) -> dict[str, Any]:
        return {"apply_b_dec_to_input": self.spec.subtract_b_dec}
