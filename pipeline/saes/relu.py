"""ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity").

- the penalty counts a latent by the norm of its decoder row (Conerly et al. 2024, "Update on how we train SAEs"), so that
  decoder rows need no constraint; the published pointer recipe takes the plain sum
- the error is a share of the activations' variance, so that `l1` does not depend on their scale; or, as published, the
  squared error per element
"""

from typing import Any

from torch import Tensor

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

    def encode(self, x_BD: Tensor) -> Tensor:
        x_BD = x_BD - self.b_dec if self.spec.subtract_b_dec else x_BD
        return (x_BD @ self.W_enc + self.b_enc).relu()

    def losses(self, x_BD: Tensor, variance: float) -> Losses:
        f_BM = self.encode(x_BD)
        squared = (self.decode(f_BM) - x_BD).square().sum()
        error = squared / (len(x_BD) * variance) if self.spec.error == "variance" else squared / x_BD.numel()
        weighted = f_BM @ self.W_dec.norm(dim=1) if self.spec.penalty == "decoder-norm" else f_BM.sum(1)
        l1 = weighted.mean()
        return Losses(error + self.spec.l1 * l1, {"error": error, "l1": l1}, f_BM, squared)

    def saelens(self) -> dict[str, Any]:
        return {"apply_b_dec_to_input": self.spec.subtract_b_dec}
