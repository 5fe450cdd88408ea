"""Settings of the online SAE."""

from typing import Literal

from pipeline.study.base import Count, NonNegative, Positive
from pipeline.study.objective import OnTokens


class OnlineSAE(OnTokens):
    """A ReLU SAE on each layer, trained along with the model; the model is trained to be easy for it."""

    objective: Literal["online-sae"]
    weight: NonNegative = 1e-1
    """Factor of the SAE's loss in the model's; the SAE itself learns at the same rate whatever it is."""
    hook: Literal["mlp_out", "mlp_hidden", "resid_post"] = "mlp_out"
    """What it reconstructs."""
    latents: Count | None = None
    """Its latents; 4 x the hook's width when not given."""
    sparsity: NonNegative = 0.1
    """Weight of the latents' sum beside the reconstruction error, for activations scaled to a mean squared norm of 1. The usual 5
    for a norm of sqrt(width) (Conerly et al. 2024, "Update on how we train SAEs") is 5 / sqrt(width) here: 0.1 at width 2500."""
    lr: Positive = 1e-3
    """Learning rate of the SAE's own Adam."""
    every: Count = 1
    """Steps of the model from one step of the SAE to the next."""
    reaches_model: bool = True
    """Whether the loss of the SAE reaches the model; if not, the SAE only watches."""

    def acts_on(self) -> str:
        return self.hook


Spec = OnlineSAE
