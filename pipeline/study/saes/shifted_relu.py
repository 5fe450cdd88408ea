"""Settings of the shifted ReLU SAE."""

from typing import Literal

from pipeline.study.base import NonNegative
from pipeline.study.saes.relu import ReLU


class ShiftedReLU(ReLU):
    """Latents max(z - theta, 0) of pre-activations z: the JumpReLU of the study ashioyajotham/exploring_saes; the literature's is
    `jumprelu` here. Without a penalty unless `l1` is given."""

    architecture: Literal["shifted-relu"]  # type: ignore[assignment]
    theta: NonNegative = 0.1
    """The shift, in units of training (those of the activations unless `normalise` says otherwise)."""
    l1: NonNegative = 0.0
    """Weight of an L1 penalty beside the reconstruction error."""
