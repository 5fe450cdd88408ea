"""ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity").

- the penalty counts a latent by the norm of its decoder row (Conerly et al. 2024, "Update on how we train SAEs"), and the decoder is
  free; or it is the plain sum of the latents, with decoder rows of norm 1 (Bricken et al.) or free (the published pointer recipe)
- the error is a share of the activations' variance and the penalty one of its root, so that `l1` does not depend on their scale; or, as
  published, the squared error per element and the penalty as it is
- once few latents are active, only the encoder's product is dense (kernels.py)
"""

from torch import Tensor

from pipeline.saes import latents
from pipeline.saes.base import SAE, Losses, Step, error_share
from pipeline.saes.decoder import norms
from pipeline.study.saes.relu import ReLU as Spec


class Module(SAE):
    architecture = "standard"
    _FIRST = 1 / 3  # half of the latents are active at first, and the penalty would take the larger part of them away
    spec: Spec

    def encode(self, x_BD: Tensor) -> Tensor:
        return self.pre(self.centred(x_BD)).relu()

    def losses(self, x_BD: Tensor, y_BE: Tensor, at: Step) -> Losses:
        centred_BD = self.centred(x_BD)
        f = latents.above(centred_BD, self.W_enc, self.bias())
        squared, _ = self.error(f, x_BD, y_BE)
        rows, sums_M = len(x_BD), f.sums()
        weighted = sums_M * norms(self.W_dec) if self.spec.penalty == "decoder-norm" else sums_M
        if self.spec.error == "variance":
            error, l1 = error_share(squared, rows, at.variance), weighted.sum() / (rows * at.variance**0.5)
        else:
            error, l1 = squared / y_BE.numel(), weighted.sum() / rows
        return Losses(error + at.sparsity * self.spec.l1 * l1, {"error": error, "l1": l1}, f.fired(), squared)
