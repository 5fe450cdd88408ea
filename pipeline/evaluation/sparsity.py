"""How often latents fire, as sums that merge and are finished once."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

DENSITY_BINS = [-6.0 + step / 4 for step in range(25)]
"""Edges of the density histogram, log10: quarters of a decade from one in a million to always."""


@dataclass
class Sparsity:
    """Counts over rows of latents f (B, M)."""

    rows: int
    fired_M: Tensor
    """Rows in which each latent is not 0, int64."""
    above: int
    """Latents above the stated threshold, over all rows."""

    @classmethod
    def of(cls, f_BM: Tensor, active_above: float) -> Self:
        """The counts of one batch."""
        return cls(len(f_BM), (f_BM != 0).sum(0), int((f_BM > active_above).sum()))

    def __add__(self, other: "Sparsity") -> "Sparsity":
        return Sparsity(self.rows + other.rows, self.fired_M + other.fired_M, self.above + other.above)

    def finish(self, active_above: float) -> dict[str, Any]:
        """l0 (mean latents that are not 0), l0_above, dead (share of latents that never fired), density histogram."""
        density_M = self.fired_M.cpu().double() / self.rows
        alive = density_M[density_M > 0].log10().clamp(DENSITY_BINS[0], DENSITY_BINS[-1])
        return {
            "l0": int(self.fired_M.sum()) / self.rows,
            "l0_above": self.above / self.rows,
            "active_above": active_above,
            "dead": (density_M == 0).double().mean().item(),
            "density": {
                "log10_edges": DENSITY_BINS,
                "counts": torch.histogram(alive, torch.tensor(DENSITY_BINS, dtype=torch.float64)).hist.long().tolist(),
                "never": int((density_M == 0).sum()),
            },
        }
