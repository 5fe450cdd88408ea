"""Top-K MLP: at each token the k hidden units of largest absolute value flow on, the others are 0.

- exactly k, also where values tie: units are chosen by index and not by a threshold
- gradient goes through the chosen units alone
- part of the model: it acts in training, in evaluation and in whatever loads the model
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.models.hooks import Tap
from pipeline.objectives import base
from pipeline.study.objectives.topk_mlp import TopKMLP as Spec


class Objective(base.Objective[Spec]):
    shaping, reads = True, False

    def __init__(self, spec: Spec, hooks: list[str], width: int) -> None:
        super().__init__(spec, hooks, width)
        self.k = spec.k(width)

    def forward(self, name: str, value: Tensor, tap: Tap) -> Tensor:
        if name not in self.hooks:
            return value
        index = value.detach().abs().topk(self.k, dim=-1, sorted=False).indices
        chosen = torch.zeros_like(value, dtype=torch.bool).scatter(-1, index, True)
        return torch.where(chosen, value, 0.0)

    def term(self, values: Mapping[str, Tensor], ids_n: Tensor) -> None:
        return None
