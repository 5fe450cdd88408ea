"""Settings of the TopK SAE."""

from typing import Literal

from pipeline.study.base import Count
from pipeline.study.sae import SAE, SAETraining


class TopK(SAE):
    """The k largest pre-activations of an input survive (Gao et al. 2024, arXiv 2406.04093)."""

    architecture: Literal["topk"]
    k: Count = 32
    """Latents that may fire for one input."""
    training: SAETraining = SAETraining()

    def problems(self, width: int) -> list[str]:
        latents = self.latents or 8 * width
        return [f"k: {self.k} is more than the {latents} latents"] if self.k > latents else []
