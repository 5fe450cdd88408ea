"""What every SAE is: four tensors, and the few methods that training, evaluation and export ask for.

Letters: B rows, D width of the hook, M latents, K active ones. W_enc (D, M), b_enc (M), W_dec (M, D), b_dec (D), as in SAELens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.artifacts.seeds import derive


@dataclass
class Losses:
    """What one batch gives: the loss to minimise, its parts by name, in how many rows each latent fired, the squared error
    summed over the batch."""

    total: Tensor
    parts: dict[str, Tensor]
    fired_M: Tensor
    squared_error: Tensor


class SAE(nn.Module):
    """Encoder, decoder, and how they are trained. An architecture says the rest."""

    architecture: str
    """What SAELens calls it."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.zeros(latents, width).T)  # laid out by latent, as the sparse gradient comes
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(torch.zeros(latents, width))
        self.b_dec = nn.Parameter(torch.zeros(width))

    def initialise(self, mean_D: Tensor) -> None:
        """Weights before the first step; `mean_D` is the mean of the activations."""
        raise NotImplementedError

    def encode(self, x_BD: Tensor) -> Tensor:
        """Latents (B, M)."""
        raise NotImplementedError

    def decode(self, f_BM: Tensor) -> Tensor:
        """Reconstruction (B, D)."""
        return f_BM @ self.W_dec + self.b_dec

    def losses(self, x_BD: Tensor, variance: float) -> Losses:
        """Loss of a batch; `variance` is that of the whole store, summed over dimensions."""
        raise NotImplementedError

    def saelens(self) -> dict[str, Any]:
        """What SAELens' cfg.json says beyond the sizes."""
        raise NotImplementedError

    @torch.no_grad()
    def init_tied(self, seed: int, mean_D: Tensor) -> None:
        """Random unit decoder rows, the encoder their transpose, b_dec the mean of the activations."""
        generator = torch.Generator().manual_seed(derive(seed, "sae", "weights"))
        rows = torch.randn(self.W_dec.shape, generator=generator)
        self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        self.W_enc.copy_(self.W_dec.T)
        self.b_dec.copy_(mean_D)

    @torch.no_grad()
    def init_linear(self, seed: int) -> None:
        """As torch.nn.Linear does it: uniform within 1 / sqrt(inputs), weights and biases."""
        generator = torch.Generator().manual_seed(derive(seed, "sae", "weights"))
        inputs = {"W_enc": self.W_enc.shape[0], "b_enc": self.W_enc.shape[0], "W_dec": self.W_dec.shape[0], "b_dec": self.W_dec.shape[0]}
        for name, parameter in self.named_parameters():
            parameter.uniform_(-(inputs[name] ** -0.5), inputs[name] ** -0.5, generator=generator)
