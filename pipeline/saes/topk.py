"""TopK SAE (Gao et al. 2024, arXiv 2406.04093).

- the k largest pre-activations survive, then ReLU: fewer than k latents fire when few are positive; or, `signed`, as they are
- the loss is the error as a share of the activations' variance; there is no penalty
- dead latents learn from what the others leave (AuxK, auxk.py)
- only the encoder's product is dense (kernels.py), and where the machine has products in bfloat16 it is one of these (screen.py)
"""

from typing import Any

from torch import Tensor

from pipeline.saes import auxk, latents
from pipeline.saes.base import SAE, Losses, Step, error_share
from pipeline.study.sae import SAE as SAESpec
from pipeline.study.saes.topk import TopK as Spec


class Module(SAE):
    architecture = "topk"
    spec: Spec

    def __init__(self, spec: SAESpec, width: int, latents: int, out: int) -> None:
        super().__init__(spec, width, latents, out)
        if self.spec.signed:
            self.architecture = "signed_topk"  # SAELens' topk applies ReLU

    def encode(self, x_BD: Tensor) -> Tensor:
        return latents.largest(self.centred(x_BD), self.W_enc, self.b_enc, self.spec.k, self.spec.signed).dense()

    def losses(self, x_BD: Tensor, y_BE: Tensor, at: Step) -> Losses:
        centred_BD = self.centred(x_BD)
        f = latents.largest(centred_BD, self.W_enc, self.bias(), at.k or self.spec.k, self.spec.signed)
        squared, error_BE = self.error(f, x_BD, y_BE)
        error = error_share(squared, len(x_BD), at.variance)
        parts = {"error": error, **auxk.part(self, centred_BD, error_BE, at)}
        return Losses(error + self.spec.auxk * parts.get("auxk", 0.0), parts, f.fired(), squared)

    def saelens(self) -> dict[str, Any]:
        return {**super().saelens(), "k": self.spec.k, "rescale_acts_by_decoder_norm": False}
