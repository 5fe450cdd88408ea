"""What all kinds of dataset share. A kind is one file in `datasets/`."""

from typing import Any, ClassVar

from pipeline.study.base import Spec

SPLITS = ("train", "validation", "test")


class Dataset(Spec):
    """A dataset: rows of input in splits."""

    form: ClassVar[str]
    """"table" (rows of numbers with a target) or "tokens" (a stream of token ids)."""

    kind: str
    sweep: dict[str, list[Any]] = {}
    """Settings that vary: each key with its values; every combination is a variant, and what is made of it one for each."""

    def splits(self) -> tuple[str, ...]:
        """The splits this dataset has, of train, validation and test."""
        raise NotImplementedError

    def sources(self) -> list[str]:
        """Files of the user that the rows are read from; a change in one makes the dataset again."""
        return []

    def cores(self) -> int:
        """Cores that making it can use."""
        return 1

    def settings(self) -> dict:
        """What the dataset step reads."""
        return self.model_dump(mode="json", exclude={"sweep"})
