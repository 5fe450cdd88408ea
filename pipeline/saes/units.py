"""Units in which an SAE is trained: activations shifted and scaled, or whitened, and the way back.

x' = (x - shift) * scale, or (x - shift) @ matrix. What is computed in them is folded into the weights on saving (base.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Units:
    """Units of one hook."""

    shift: Tensor
    """(D,)"""
    scale: float = 1.0
    """1 where there is a matrix."""
    matrix: Tensor | None = None
    """(D, D), symmetric."""
    inverse: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether they are those of the activations."""
        return self.matrix is None and self.scale == 1.0 and not self.shift.any()

    def apply(self, x_BD: Tensor) -> Tensor:
        """Activations in these units."""
        if self.plain:
            return x_BD
        shifted = x_BD - self.shift
        return shifted.mul_(self.scale) if self.matrix is None else shifted @ self.matrix

    def back(self, x_BD: Tensor) -> Tensor:
        """Activations of what is in these units."""
        return self.directions_back(x_BD) + self.shift

    def directions(self, x_DE: Tensor) -> Tensor:
        """What acts on activations, of what acts on their differences in these units (along the first dimension)."""
        return x_DE * self.scale if self.matrix is None else self.matrix @ x_DE

    def directions_back(self, x_BD: Tensor) -> Tensor:
        """Differences of activations, of differences in these units (along the last dimension)."""
        return x_BD / self.scale if self.inverse is None else x_BD @ self.inverse


def plain(width: int) -> Units:
    """Those of the activations themselves."""
    return Units(torch.zeros(width))
