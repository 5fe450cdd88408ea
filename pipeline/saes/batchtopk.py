"""BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410).

- while training, the largest positive pre-activations of a batch survive, k times as many as it has rows; of a batch that processes
  share, those of the whole batch
- afterwards, those above a threshold: a running mean, at rate 0.01 as in SAELens, of the smallest that survived. SAELens' begins at 0,
  which short runs end near; and the smallest falls while an SAE learns, so that a plain mean of a short run is far too high. Here the rate
  is 10 / n at the nth batch until it is 0.01: a mean of about the last tenth of the run. While k falls it is that of the last batch, and
  the mean begins where k has reached its value
- saved as SAELens saves it: a JumpReLU SAE with one threshold for all latents. As a ReLU SAE, far more latents would be active
- dead latents learn from what the others leave (AuxK, auxk.py); only the encoder's product is dense (kernels.py)
"""

import torch
from torch import Tensor

from pipeline.saes import auxk, latents, select
from pipeline.saes.base import SAE, Losses, Step, error_share
from pipeline.study.sae import SAE as SAESpec
from pipeline.study.saes.batchtopk import BatchTopK as Spec

RATE = 0.01
SHARE = 10
"""The mean is of about the last of so many parts of the run, while that is shorter than what `RATE` remembers."""


class Module(SAE):
    architecture = "jumprelu"
    _THRESHOLDS = ("threshold",)
    spec: Spec
    threshold: Tensor
    """(M,), all the same."""
    average: Tensor
    """The threshold while training, in float64: a hundredth of a small difference would be lost in less."""
    batches: Tensor
    """How many it has followed since k reached its value."""

    def __init__(self, spec: SAESpec, width: int, latents: int, out: int) -> None:
        super().__init__(spec, width, latents, out)
        self.register_buffer("threshold", torch.zeros(latents))
        self.register_buffer("average", torch.tensor(0.0, dtype=torch.float64), persistent=False)
        self.register_buffer("batches", torch.tensor(0), persistent=False)

    def encode(self, x_BD: Tensor) -> Tensor:
        pre_BM = self.pre(self.centred(x_BD))
        return pre_BM.relu() * (pre_BM > self.threshold)

    def begin(self, x_BD: Tensor) -> Tensor:
        pre_BM = self.pre(self.centred(x_BD))
        active, _ = select.batch(pre_BM, len(x_BD) * (self.spec.k_at(0.0) or self.spec.k))
        return torch.zeros_like(pre_BM).index_put_((active.row, active.index), pre_BM[active.row, active.index])

    def losses(self, x_BD: Tensor, y_BE: Tensor, at: Step) -> Losses:
        centred_BD, f = self.survivors(x_BD, at)
        squared, error_BE = self.error(f, x_BD, y_BE)
        error = error_share(squared, len(x_BD), at.variance)
        parts = {"error": error, **auxk.part(self, centred_BD, error_BE, at)}
        return Losses(error + self.spec.auxk * parts.get("auxk", 0.0), parts, f.fired(), squared)

    def survivors(self, x_BD: Tensor, at: Step) -> tuple[Tensor, latents.Latents]:
        """The encoder's input, and the latents that survive. The threshold follows."""
        centred_BD = self.centred(x_BD)
        rows = int(at.summed(torch.tensor(len(x_BD), device=x_BD.device)))
        k = at.k or self.spec.k
        f, smallest = latents.largest_of_batch(centred_BD, self.W_enc, self.bias(), rows * k, at.gathered, at.rank)
        if self.training:
            self._follow(smallest)
            if k != self.spec.k:
                self.batches.zero_()
        return centred_BD, f

    @torch.no_grad()
    def _follow(self, smallest: Tensor) -> None:
        self.batches += smallest > 0
        rate = torch.where(smallest > 0, (SHARE / self.batches.double()).clamp(RATE, 1.0), 0.0)
        self.average.lerp_(smallest.double(), rate)
        self.threshold.copy_(self.average.expand_as(self.threshold))
