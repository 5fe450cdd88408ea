"""What all SAE architectures share. An architecture is one file in `saes/`."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.study.base import Count, Distinct, Name, Seed, Spec
from pipeline.study.training import Optimizer, Schedule


class SAETraining(Optimizer):
    """Batches from a seeded permutation of the rows of the train store."""

    schedule: Schedule = Schedule(shape="linear", warmup=100)
    epochs: Count = 10
    """Passes over the store, each in equal batches of at most `batch` rows."""
    batch: Count = 1024
    memory_mb: Count = 2048
    """Memory for rows of the store. While they fit, the order is an exact permutation; otherwise chunks in random order are
    mixed as many as fit."""

    @model_validator(mode="after")
    def _no_plateau(self) -> Self:
        if self.schedule.shape == "plateau":
            raise ValueError("schedule: `plateau` needs a loss on held-out rows, which SAEs are not measured on while they train")
        return self


class SAE(Spec):
    """A sparse dictionary trained on each of some hooks."""

    architecture: str
    activations: Name
    """The activations it is trained on. If their model is swept, there is one SAE for each variant."""
    hooks: Annotated[list[str], Field(min_length=1), Distinct] | None = None
    """Which of their hooks; all when not given."""
    latents: Count | None = None
    """Number of latents; 8 x the hook's width when not given, as in Bricken et al. 2023."""
    seed: Seed = 0
    """Seed of initial weights and batch order."""
    threads: Count = 1
    """Compute threads. Part of the result: another number changes floating-point sums."""
    training: SAETraining = SAETraining()
    sweep: dict[str, list[Any]] = {}
    """Settings that vary: each key (dotted for nested ones) with its values; every combination is a variant."""

    def problems(self, width: int) -> list[str]:
        """What is wrong with these settings on a hook of this width, as "setting: what"."""
        return []

    def settings(self) -> dict:
        """What the training step reads."""
        return self.model_dump(mode="json", exclude={"sweep", "activations", "hooks"})
