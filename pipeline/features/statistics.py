"""What can be said of each latent from one pass over a store, as sums that merge."""

from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import torch
from torch import Tensor


@dataclass
class LatentSums:
    """Sums over rows of latents f (B, M), each (M,)."""

    rows: int
    fired: Tensor
    total: Tensor
    maximum: Tensor

    @classmethod
    def of(cls, f_BM: Tensor) -> Self:
        """The sums of one batch."""
        return cls(len(f_BM), (f_BM != 0).sum(0), f_BM.double().sum(0), f_BM.amax(0))

    def __add__(self, other: "LatentSums") -> "LatentSums":
        return LatentSums(
            self.rows + other.rows, self.fired + other.fired, self.total + other.total, torch.maximum(self.maximum, other.maximum)
        )

    def finish(self) -> pa.Table:
        """One row per latent: density, mean, mean_active, max and selectivity (max / mean, null where it never fires)."""
        mean = self.total / self.rows
        fired = self.fired > 0
        return pa.table(
            {
                "latent": pa.array(range(len(mean)), pa.int32()),
                "density": (self.fired.double() / self.rows).numpy(),
                "mean": mean.numpy(),
                "mean_active": pa.array((self.total / self.fired).numpy(), mask=~fired.numpy()),
                "max": self.maximum.double().numpy(),
                "selectivity": pa.array((self.maximum.double() / mean).numpy(), mask=~fired.numpy()),
            }
        )
