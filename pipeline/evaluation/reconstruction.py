"""How well an SAE reconstructs, or a transcoder predicts, as sums that merge and are finished once.

Every number has one definition, docs/design.md section 6.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass
class Reconstruction:
    """Sums over rows x (B, D) and reconstructions x_hat (B, D), in float64. Of a transcoder x is what it is to predict."""

    rows: int
    error: float
    """Sum of |x - x_hat|^2."""
    square: float
    """Sum of |x|^2."""
    total_D: Tensor
    """Sum of x."""
    reconstructed: float
    """Sum of |x_hat|^2."""
    inner: float
    """Sum of <x, x_hat>."""

    @classmethod
    def of(cls, x: Tensor, x_hat: Tensor) -> Self:
        """The sums of one batch."""
        x, x_hat = x.double(), x_hat.double()
        return cls(
            rows=len(x),
            error=(x - x_hat).square().sum().item(),
            square=x.square().sum().item(),
            total_D=x.sum(0),
            reconstructed=x_hat.square().sum().item(),
            inner=(x * x_hat).sum().item(),
        )

    def __add__(self, other: "Reconstruction") -> "Reconstruction":
        return Reconstruction(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def mean(self) -> Tensor:
        """Mean of x (D,)."""
        return self.total_D / self.rows

    def finish(self) -> dict[str, float | None]:
        """fve, mse, mse_per_dim and relative_reconstruction_bias; None where a denominator is 0.

        fve = 1 - sum |x - x_hat|^2 / sum |x - mean|^2, the mean over everything added, so that a constant offset of x does not
        count as variance explained (tools that measure variance about zero report .88 where the truth is .75). The bias is
        that of Rajamanoharan et al. 2024 (arXiv 2404.16014, equation 10): below 1, reconstructions are shrunk.
        """
        variance = self.square - self.rows * self.mean.square().sum().item()
        constant = variance <= 1e-12 * self.square  # what rounding leaves of no variance at all
        return {
            "fve": None if constant else 1 - self.error / variance,
            "mse": self.error / self.rows,
            "mse_per_dim": self.error / self.rows / len(self.total_D),
            "relative_reconstruction_bias": self.reconstructed / self.inner if self.inner else None,
        }
