"""Settings of the Matryoshka BatchTopK SAE."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.study.base import Positive
from pipeline.study.saes.batchtopk import BatchTopK


class Matryoshka(BatchTopK):
    """A BatchTopK SAE whose first latents reconstruct alone as well, in nested groups (Bussmann et al. 2025, arXiv 2503.17547)."""

    architecture: Literal["matryoshka"]  # type: ignore[assignment]
    prefixes: Annotated[list[Positive], Field(min_length=1)] = [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1]
    """How many latents, from the first, reconstruct together: rising shares of all of them (up to 1), or rising numbers. The last is all
    of them. The default is the paper's."""

    @model_validator(mode="after")
    def _nested(self) -> Self:
        if any(high <= low for low, high in pairwise(self.prefixes)):
            raise ValueError("prefixes: have to rise")
        if self.prefixes[-1] > 1 and any(not float(size).is_integer() for size in self.prefixes):
            raise ValueError("prefixes: all shares up to 1, or all whole numbers of latents")
        return self

    def sizes(self, latents: int) -> list[int]:
        """The prefixes in latents."""
        return [round(size * latents) if self.prefixes[-1] <= 1 else int(size) for size in self.prefixes]

    def problems(self, width: int) -> list[str]:
        latents = self.latents or 8 * width
        sizes = self.sizes(latents)
        problems = super().problems(width)
        if sizes[0] < 1 or any(high <= low for low, high in pairwise(sizes)):
            problems.append(f"prefixes: {sizes} of {latents} latents; each has to hold more than the one before")
        elif sizes[-1] != latents:
            problems.append(f"prefixes: the last is {sizes[-1]} of {latents} latents; it has to hold them all")
        return problems
