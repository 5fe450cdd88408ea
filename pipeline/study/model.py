"""What all model architectures share. An architecture is one file in `models/`."""

from typing import Any, ClassVar

from pipeline.study.base import Count, Name, Seed, Spec
from pipeline.study.training import Optimizer


class Model(Spec):
    """A network that is trained here."""

    form: ClassVar[str]
    """The form of dataset it takes: "table" or "tokens"."""

    architecture: str
    dataset: Name
    """The dataset it is trained on. If that is swept, there is one model for each of its variants."""
    seed: Seed = 0
    """Seed of initial weights and batch order."""
    threads: Count = 2
    """Compute threads. Part of the result: another number changes floating-point sums."""
    training: Optimizer = Optimizer()
    sweep: dict[str, list[Any]] = {}
    """Settings that vary: each key (dotted for nested ones) with its values; every combination is a variant."""

    def hooks(self) -> dict[str, int]:
        """Each hook with its width."""
        raise NotImplementedError

    def meaning(self, hook: str) -> str:
        """What a hook is, in words."""
        raise NotImplementedError

    def length(self, sequences: int) -> tuple[int, int]:
        """Optimizer steps of the run for a train split of so many sequences, and steps between two measurements."""
        raise NotImplementedError

    def settings(self) -> dict:
        """What the training step reads."""
        return self.model_dump(mode="json", exclude={"sweep", "dataset"})
