"""Settings of the anti-polysemantic objective."""

from typing import Literal

from pipeline.study.base import NonNegative
from pipeline.study.objective import OnTokens


class AntiPolysemantic(OnTokens):
    """A unit should answer to few kinds of token: the mean entropy of how each unit of `mlp_out` spreads over token types."""

    objective: Literal["anti-polysemantic"]
    weight: NonNegative = 1e-2
    """Factor of the term in the loss; the middle of the published 1e-3, 1e-2, 1e-1."""

    def acts_on(self) -> str:
        return "mlp_out"


Spec = AntiPolysemantic
