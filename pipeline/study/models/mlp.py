"""A multilayer perceptron for tables."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.study.base import Count
from pipeline.study.model import ModelTraining, Trained


class MLPTraining(ModelTraining):
    """Mean squared error on batches from a seeded permutation of the rows."""

    epochs: Count = 100
    """Passes over the train split, each in equal batches of at most `batch` rows."""
    validate_every: Count = 5
    """Epochs between two measurements on the validation split."""


class MLP(Trained):
    """Linear layers with ReLU between them, and batch norm before the ReLU of the layers named."""

    form: ClassVar[str] = "table"

    architecture: Literal["mlp"]
    hidden: Annotated[list[Count], Field(min_length=1)] = [256, 512, 256]
    """Widths of the hidden layers; hook `layerN` is the output of the N-th, after its ReLU."""
    batch_norm: list[Count] = [1, 2]
    """Which hidden layers, counted from 1, have batch norm."""
    training: MLPTraining = MLPTraining()

    def hooks(self) -> dict[str, int]:
        return {f"layer{n}": width for n, width in enumerate(self.hidden, 1)}

    def meaning(self, hook: str) -> str:
        return f"output of hidden layer {hook.removeprefix('layer')}, after its ReLU"

    def length(self, sequences: int) -> tuple[int, int]:
        steps = -(-sequences // self.training.batch)
        return self.training.epochs * steps, self.training.validate_every * steps

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        for layer in self.batch_norm:
            if layer > len(self.hidden):
                raise ValueError(f"batch_norm: there is no hidden layer {layer}; hidden has {len(self.hidden)}")
        if self.batch_norm and self.training.accumulate > 1:
            raise ValueError("training: batch norm takes its statistics from a whole batch; accumulate has to be 1, or batch_norm empty")
        if self.batch_norm and self.training.batch < 3:
            raise ValueError("training: batch norm needs a batch of at least 3 rows: in smaller ones an odd row would be alone")
        return self
