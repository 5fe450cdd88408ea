"""Settings of direct sparsity."""

from typing import Literal

from pipeline.study.base import Count
from pipeline.study.objective import OnTokens


class DirectSparsity(OnTokens):
    """What an MLP puts out goes through an overcomplete layer of ReLU codes and back; the codes have an L1 penalty."""

    objective: Literal["direct-sparsity"]
    latents: Count | None = None
    """Codes of each layer: an even number, at least twice the width of `mlp_out`; 4 x it when not given."""

    def acts_on(self) -> str:
        return "mlp_out"

    def problems(self, layers: int, width: int) -> list[str]:
        fits = self.latents is None or (self.latents % 2 == 0 and self.latents >= 2 * width)
        odd = [] if fits else [f"latents: {self.latents} is no even number of at least {2 * width}, twice the width of mlp_out"]
        return [*super().problems(layers, width), *odd]


Spec = DirectSparsity
