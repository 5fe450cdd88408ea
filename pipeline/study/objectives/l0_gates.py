"""Settings of the L0 gates."""

from typing import Literal

from pipeline.study.base import NonNegative, Positive
from pipeline.study.objective import Weighted


class L0Gates(Weighted):
    """A learned gate on each unit of `mlp_hidden`, and the share of gates that are open as a term."""

    objective: Literal["l0-gates"]
    weight: NonNegative = 1e-1
    """Factor of the term in the loss: what it costs, in nats per token, when all gates are open. A weight on the number of open
    gates is this one divided by the number of units."""
    temperature_start: Positive = 1.0
    """Temperature of the gates in the first step. Low ones are nearly 0 or 1, and pass little gradient."""
    temperature_end: Positive = 0.1
    """Temperature that the run ends at; between the two it falls by the same factor in each step."""

    def acts_on(self) -> str:
        return "mlp_hidden"


Spec = L0Gates
