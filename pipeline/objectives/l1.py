"""L1 on activations: the mean absolute value over tokens and units."""

from torch import Tensor

from pipeline.objectives import base
from pipeline.study.objectives.l1 import L1 as Spec


class Objective(base.Objective[Spec]):
    def at_hook(self, hook: str, value_nD: Tensor, ids_n: Tensor) -> Tensor:
        return value_nD.abs().mean()
