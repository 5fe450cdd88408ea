"""Settings of the Top-K MLP."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.study.base import Number
from pipeline.study.objective import Objective


class TopKMLP(Objective):
    """At each token the largest hidden units of an MLP flow on and the others are 0, in training and ever after. It has no term,
    so no weight."""

    objective: Literal["topk-mlp"]
    ratio: Annotated[float, Number, Field(gt=0, le=1)] = 0.25
    """Share of `mlp_hidden` that flows on, rounded to the nearest number of units; published are 0.1, 0.25 and 0.5, which of 1536
    are 154, 384 and 768."""

    def acts_on(self) -> str:
        return "mlp_hidden"

    def k(self, width: int) -> int:
        """Units of so many that flow on."""
        return int(self.ratio * width + 0.5)

    def problems(self, layers: int, width: int) -> list[str]:
        none = [f"ratio: {self.ratio} of {width} units is less than half a unit"] if self.k(width) == 0 else []
        return [*super().problems(layers, width), *none]


Spec = TopKMLP
