"""Rows that an SAE is not trained on, measured while it is trained."""

import torch
from torch import Tensor

from pipeline.saes.base import SAE, Step
from pipeline.saes.units import Units

BATCH = 1024
QUANTILES = (10, 50, 90)
"""Of the latents' densities, in per cent."""


class HeldOut:
    """Some rows, and what is predicted from them (the rows themselves, unless it is a transcoder), as the model computed them."""

    def __init__(self, x_ND: Tensor, y_NE: Tensor) -> None:
        self.x_ND, self.y_NE = x_ND, y_NE
        y = y_NE.double()
        varied = bool((y_NE != y_NE[:1]).any())
        self.variance = (y - y.mean(0)).square().sum().item() if varied else 0.0
        """Summed over rows and dimensions; 0 of equal rows, whatever rounding would leave."""

    @torch.no_grad()
    def measure(self, sae: SAE) -> dict[str, float]:
        """FVE, L0, the share of latents that fire in none of the rows, and quantiles of density, of weights that take raw activations."""
        fired_M = torch.zeros(len(sae.W_dec), dtype=torch.int64, device=sae.W_dec.device)
        squared = torch.zeros((), dtype=torch.float64, device=fired_M.device)
        for x, y in zip(self.x_ND.split(BATCH), self.y_NE.split(BATCH), strict=True):
            f_BM = sae.encode(x)
            fired_M += (f_BM != 0).sum(0)
            squared += (sae.predict(f_BM, x) - y).double().square().sum()
        row = {
            "validation_fve": 1 - squared.item() / self.variance,
            "validation_l0": fired_M.sum().item() / len(self.x_ND),
            "validation_dead": (fired_M == 0).double().mean().item(),
        }
        density_M = (fired_M.double() / len(self.x_ND)).cpu()
        shares = torch.tensor(QUANTILES, dtype=torch.float64) / 100
        values = density_M.quantile(shares).tolist()
        return row | {f"validation_density_{share}": value for share, value in zip(QUANTILES, values, strict=True)}

    @torch.no_grad()
    def loss(self, sae: SAE, inputs: Units, outputs: Units, variance: float) -> float:
        """Mean over the rows of the loss that an SAE is trained with, penalties at their full weight; in units of training, in which
        `variance` is."""
        total, training = 0.0, sae.training
        sae.eval()
        for x, y in zip(self.x_ND.split(BATCH), self.y_NE.split(BATCH), strict=True):
            total += len(x) * sae.losses(inputs.apply(x), outputs.apply(y), Step(variance)).total.item()
        sae.train(training)
        return total / len(self.x_ND)
