"""L0 gates: hard concrete gates on hidden units (Louizos, Welling & Kingma 2018, arXiv 1712.01312).

- in training a gate is z = clamp(s (zeta - gamma) + gamma, 0, 1), s = sigmoid((log u - log(1 - u) + log alpha) / temperature),
  u uniform; stretched from (0, 1) to (-0.1, 1.1), so that exact zeros and ones have a probability. A gate that is not stretched
  would never be 0
- one sample per unit and sequence: all tokens of a sequence see the same units, and sequences give the gradient different ones
- at inference z = clamp(sigmoid(log alpha) (zeta - gamma) + gamma, 0, 1), the paper's estimate: exactly 0 where log alpha is at
  most log(0.1 / 1.1) = -2.4, whatever the temperature
- the term is the expected share of open gates, sigmoid(log alpha - temperature log(-gamma / zeta)), a mean over units, so that
  weights are comparable over widths; the published penalty sums over units
- log alpha starts at N(0, 0.01^2), a drop rate of a half, as in the authors' code
"""

from collections.abc import Mapping
from math import log

import torch
from torch import Tensor, nn

from pipeline.models.hooks import Tap
from pipeline.objectives import base
from pipeline.study.objectives.l0_gates import L0Gates as Spec

GAMMA, ZETA = -0.1, 1.1
_EDGE = 1e-6  # u stays this far from 0 and 1, where its logarithms are infinite


class Objective(base.Objective[Spec]):
    shaping, reads = True, False

    def __init__(self, spec: Spec, hooks: list[str], width: int) -> None:
        super().__init__(spec, hooks, width)
        self.ends = spec.temperature_start, spec.temperature_end
        self.number = {hook: n for n, hook in enumerate(hooks)}
        self.log_alpha = nn.ParameterList(0.01 * torch.randn(width) for _ in hooks)
        self.temperature: Tensor  # a tensor, so that a compiled model is not compiled anew for each value
        self.register_buffer("temperature", torch.tensor(self.ends[0]), persistent=False)

    def begin_step(self, share: float) -> None:
        start, end = self.ends
        self.temperature.fill_(start * (end / start) ** share)

    def forward(self, name: str, value: Tensor, tap: Tap) -> Tensor:
        if name not in self.number:
            return value
        log_alpha_D = self.log_alpha[self.number[name]]
        gate = self._sample(log_alpha_D, value) if self.training else at_inference(log_alpha_D)
        return value * gate.to(value.dtype)

    def _sample(self, log_alpha_D: Tensor, value: Tensor) -> Tensor:
        """Gates of each sequence of `value` (B, 1, D)."""
        shape = (len(value), *(1 for _ in value.shape[2:]), len(log_alpha_D))
        u = torch.rand(shape, dtype=log_alpha_D.dtype, device=log_alpha_D.device).clamp(_EDGE, 1 - _EDGE)
        return _stretched(((u.logit() + log_alpha_D) / self.temperature).sigmoid())

    def term(self, values: Mapping[str, Tensor], ids_n: Tensor) -> Tensor:
        with torch.autocast(ids_n.device.type, enabled=False):
            shift = self.temperature * log(-GAMMA / ZETA)
            return torch.stack([(log_alpha_D - shift).sigmoid().mean() for log_alpha_D in self.log_alpha]).mean()

    @torch.no_grad()
    def tracked(self) -> dict[str, float]:
        """The share of gates that are open at inference."""
        return {"open": torch.cat([at_inference(log_alpha_D) > 0 for log_alpha_D in self.log_alpha]).double().mean().item()}


def at_inference(log_alpha_D: Tensor) -> Tensor:
    """Gates without noise (D)."""
    return _stretched(log_alpha_D.sigmoid())


def _stretched(s: Tensor) -> Tensor:
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
