"""What all model architectures share. An architecture is one file in `models/`."""

from typing import Any, ClassVar, Literal

from pipeline.study.base import Count, Name, Seed, Spec
from pipeline.study.training import Optimizer


class ModelTraining(Optimizer):
    """How a model is trained, whatever it is."""

    accumulate: Count = 1
    """Parts in which a batch goes through the model; their gradients add up to the batch's, and less memory is needed."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """`bfloat16` is autocast: weights, sums and losses stay float32. `float64` is all of it, for comparisons."""
    compile: bool = False
    """Whether torch.compile makes the forward faster; it takes minutes to start. Part of the result."""
    stop_after: Count | None = None
    """Stops early after so many measurements without a new lowest validation loss."""
    keep: Literal["last", "best"] = "last"
    """The weights that the study goes on with: those of the last step, or those with the lowest measured validation loss. The
    others stay beside them."""


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
    training: ModelTraining = ModelTraining()
    sweep: dict[str, list[Any]] = {}
    """Settings that vary: each key (dotted for nested ones) with its values; every combination is a variant."""

    def sources(self) -> list[str]:
        """Files of the user that its weights are read from; a change in one makes the model again."""
        return []

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
