"""Orthogonality of units: the mean of |cosine| over all pairs of two different units.

- the cosine is between columns, each a unit's activations at n tokens, not centred; it does not change with a unit's scale
- a unit that is 0 at all tokens has cosine 0 with every other, and gets no gradient
- the mean was published over all D^2 entries of |S - I|, whose diagonal is 0: (D - 1) / D of this one
- only the sign of S is kept for the backward, which is one product of the size of the forward's
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.objectives import base
from pipeline.study.objectives.orthogonality import Orthogonality as Spec


class _SumOfCosines(torch.autograd.Function):
    """Sum of |U^T U| off its diagonal, of unit columns U (n, D)."""

    @staticmethod
    def forward(ctx: Any, unit_nD: Tensor) -> Tensor:
        cosine_DD = (unit_nD.T @ unit_nD).fill_diagonal_(0)
        ctx.save_for_backward(unit_nD, cosine_DD.sign())
        return cosine_DD.abs().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit_nD, sign_DD = ctx.saved_tensors
        return (2 * gradient) * (unit_nD @ sign_DD)  # twice: S is symmetric, and so is its sign


class Objective(base.Objective[Spec]):
    def at_hook(self, hook: str, value_nD: Tensor, ids_n: Tensor) -> Tensor:
        units = value_nD.shape[1]
        return _SumOfCosines.apply(F.normalize(value_nD, dim=0)) / (units * (units - 1))
