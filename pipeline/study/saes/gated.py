"""Settings of the gated SAE."""

from typing import Literal

from pipeline.study.base import NonNegative
from pipeline.study.sae import SAE


class Gated(SAE):
    """A gate says which latents are active, another bias and scale of the same directions how much (Rajamanoharan et al. 2024, arXiv
    2404.16014)."""

    architecture: Literal["gated"]
    l1: NonNegative = 0.2
    """Weight of the L1 penalty on the gate beside the reconstruction error. Error and penalty are shares of the variance of the activations
    and of its root, so that it does not depend on their scale."""
    decoder: Literal["unit"] = "unit"
    """Decoder rows stay at norm 1, as the penalty needs."""

    def penalised(self) -> bool:
        return self.l1 > 0
