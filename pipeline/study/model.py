"""What all model architectures share. An architecture is one file in `models/`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pipeline.study.base import Count, Name, Seed, Spec
from pipeline.study.training import Optimizer


class ModelTraining(Optimizer):
    """How a model is trained, whatever it is."""

    accumulate: Count = 1
    """Parts in which a batch goes through the model; their gradients add up to the batch's, and less memory is needed. Objectives
    that compare units over tokens see one part at a time, each with its own `tokens`."""
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
    """A network: trained here (`Trained`), or taken over from elsewhere."""

    form: ClassVar[str]
    """The form of dataset it takes: "table" or "tokens"."""

    architecture: str
    dataset: Name
    """The dataset it is trained on, or that it reads where it is trained already. If that is swept, there is one model for each
    of its variants."""
    seed: Seed = 0
    """Seed of initial weights and batch order."""
    threads: Count = 2
    """Compute threads. Part of the result: another number changes floating-point sums."""
    sweep: dict[str, list[Any]] = {}
    """Settings that vary: each key (dotted for nested ones) with its values; every combination is a variant."""

    def sources(self) -> list[str]:
        """Files of the user that its weights are read from; a change in one makes the model again."""
        return []

    def problems(self) -> list[str]:
        """What is wrong with the user's files that it is read from, as "setting: what". Asked when a study is parsed, and not by
        steps, which read artifacts."""
        return []

    def hooks(self) -> Mapping[str, int | None] | None:
        """Each hook with its width, None where that is not known; None when it is not known which there are."""
        raise NotImplementedError

    def lacks(self, splits: tuple[str, ...]) -> list[str]:
        """What it asks of a dataset with these splits and does not get, as "setting: what"."""
        return []

    def misnamed(self, hook: str) -> str | None:
        """What is wrong with the name of a hook, as far as that can be told where `hooks` is None."""
        return None

    def meaning(self, hook: str) -> str:
        """What a hook is, in words."""
        raise NotImplementedError

    def pretrained(self) -> bool:
        """Whether it was trained elsewhere and is taken over as it is."""
        return False

    def scoring_batch(self) -> int:
        """Rows or sequences that go through the model at a time where its loss is measured."""
        raise NotImplementedError

    def cores(self) -> int:
        """Compute threads of all its processes together."""
        return self.threads

    def settings(self) -> dict:
        """What the training step reads."""
        return self.model_dump(mode="json", exclude={"sweep", "dataset"})


class Trained(Model):
    """A network that is trained here."""

    training: ModelTraining = ModelTraining()

    def length(self, sequences: int) -> tuple[int, int]:
        """Optimizer steps of the run for a train split of so many sequences, and steps between two measurements."""
        raise NotImplementedError

    def scoring_batch(self) -> int:
        return max(1, self.training.batch // self.training.accumulate)

    def lacks(self, splits: tuple[str, ...]) -> list[str]:
        """What it asks of a dataset with these splits and does not get, as "setting: what"."""
        asked = {
            "training.schedule": self.training.schedule.shape == "plateau",
            "training.stop_after": self.training.stop_after is not None,
            "training.keep": self.training.keep == "best",
        }
        return [f"{setting}: needs a validation split" for setting, yes in asked.items() if yes and "validation" not in splits]
