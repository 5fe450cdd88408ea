"""Settings of the JumpReLU SAE."""

from statistics import NormalDist
from typing import Any, Literal, Self

from pydantic import model_validator

from pipeline.study.base import NonNegative, Positive
from pipeline.study.sae import SAE, Normalise, centred_by_default


class JumpReLU(SAE):
    """Pre-activations above a learned threshold of each latent survive as they are, under an L0 penalty (Rajamanoharan et al. 2024,
    arXiv 2407.14435)."""

    architecture: Literal["jumprelu"]
    l0: NonNegative = 1e-3
    """Weight of L0 beside the reconstruction error, which is a share of the variance: a latent stays active where it explains more than
    that share. With `target_l0` it is where the weight begins."""
    target_l0: Positive | None = None
    """The L0 to reach: the weight is found while training."""
    threshold: NonNegative | None = None
    """Where thresholds begin, in units in which a random direction's pre-activation has mean 0 and variance 1: those of training
    (`normalise`) for directions of norm 1. When not given, where about `target_l0` latents are active; without a target at 1, where a
    sixth of them are. From 0.05, where the paper's begin (0.001 in units in which activations have norm 1, at its width of 2304), runs of
    a thousand steps do not reach a usual L0."""
    bandwidth: Positive = 0.05
    """Width of the band around the threshold in which pre-activations move it, in units of training; the paper's 0.001 at that width."""
    normalise: Normalise = Normalise(centre=True, scale="norm")
    """`centre: true` and `scale: norm`, for what it says nothing of: the mean would count in the norm, and thresholds be too high."""

    @model_validator(mode="before")
    @classmethod
    def _centred(cls, raw: Any) -> Any:
        return centred_by_default(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _in_units_of_the_band(self) -> Self:
        if self.normalise.scale == "none":
            raise ValueError("normalise.scale: thresholds and their bandwidth are in normalised units; `norm` or `whiten`")
        return self

    def begins(self, latents: int) -> float:
        """Where thresholds begin, in an SAE of so many latents."""
        if self.threshold is not None:
            return self.threshold
        return 1.0 if self.target_l0 is None else -NormalDist().inv_cdf(min(0.5, self.target_l0 / latents))

    def penalised(self) -> bool:
        return self.l0 > 0 or self.target_l0 is not None

    def wanted_l0(self) -> float | None:
        return self.target_l0

    def problems(self, width: int) -> list[str]:
        latents = self.latents or 8 * width
        return [f"target_l0: {self.target_l0} is more than the {latents} latents"] if (self.target_l0 or 0) > latents else []
