"""Settings of the ReLU + L1 SAE."""

from typing import Literal

from pipeline.study.base import NonNegative
from pipeline.study.sae import SAE


class ReLU(SAE):
    """ReLU latents with an L1 penalty (Bricken et al. 2023; the norm-weighted penalty: Conerly et al. 2024)."""

    architecture: Literal["relu"]
    l1: NonNegative = 0.15
    """Weight of the penalty beside the reconstruction error."""
    error: Literal["variance", "element"] = "variance"
    """`variance`: the squared error as a share of the variance of the activations, and the penalty as a share of its root, so that `l1`
    does not depend on their scale; `element`: the squared error per element and the penalty as it is, as in published recipes."""
    penalty: Literal["decoder-norm", "plain"] = "decoder-norm"
    """Sum of latents times the norm of their decoder rows, or the plain sum of latents."""
    decoder: Literal["unit", "free"] = "free"
    """`unit`: decoder rows stay at norm 1, as the plain penalty needs; `free`: as the loss moves them."""

    def penalised(self) -> bool:
        return self.l1 > 0

    def idle(self) -> dict[str, str]:
        found = super().idle()
        if self.l1 == 0 and "penalty" in self.model_fields_set:
            found["penalty"] = "has no effect, since its weight `l1` is 0; leave it out, or give `l1`"
        return found
