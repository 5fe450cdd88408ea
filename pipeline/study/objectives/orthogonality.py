"""Settings of the orthogonality objective."""

from typing import Literal

from pipeline.study.base import NonNegative
from pipeline.study.objective import OnTokens


class Orthogonality(OnTokens):
    """Units should not fire together: the mean absolute cosine between two units of `mlp_out` over the tokens of a batch."""

    objective: Literal["orthogonality"]
    weight: NonNegative = 1e-2
    """Factor of the term in the loss; the middle of the published 1e-3, 1e-2, 1e-1."""

    def acts_on(self) -> str:
        return "mlp_out"

    def problems(self, layers: int, width: int) -> list[str]:
        alone = ["objective: one unit alone has no other to be orthogonal to"] if width < 2 else []
        return [*super().problems(layers, width), *alone]


Spec = Orthogonality
