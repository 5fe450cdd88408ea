"""Settings of the L1 objective."""

from typing import Literal

from pipeline.study.base import NonNegative
from pipeline.study.objective import OnTokens


class L1(OnTokens):
    """Hidden units should be small: the mean absolute value of `mlp_hidden`."""

    objective: Literal["l1"]
    weight: NonNegative = 1e-3
    """Factor of the term in the loss; the middle of the published 1e-4, 1e-3, 1e-2."""

    def acts_on(self) -> str:
        return "mlp_hidden"


Spec = L1
