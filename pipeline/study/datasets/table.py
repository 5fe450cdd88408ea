"""A table of the user's own: rows of numbers with a target, one file per split."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.study.base import Count, Spec
from pipeline.study.dataset import SPLITS, Dataset

FORMATS = (".xlsx", ".csv", ".parquet")


def _readable(path: str) -> str:
    if not path.endswith(FORMATS):
        raise ValueError(f"the file's name has to end in {', '.join(FORMATS)}")
    return path


TableFile = Annotated[str, AfterValidator(_readable)]


class TableFiles(Spec):
    """One file per split; paths are relative to where the workflow runs."""

    train: TableFile
    validation: TableFile | None = None
    test: TableFile | None = None


class Table(Dataset):
    """Rows read from .xlsx, .csv or .parquet files.

    A column is either one number per row, or a text or list of numbers such as `[5, 0, 3]`. The defaults are the columns
    of the published pointer tables.
    """

    form: ClassVar[str] = "table"

    kind: Literal["table"]
    files: TableFiles
    """The files, by split."""
    inputs: Annotated[list[str], Field(min_length=1)] = ["input_list"]
    """Columns that make the input, in this order."""
    target: str = "output_list"
    """Column of the target, one number per row."""
    width: Count
    """Numbers in one row of input; every row is checked against it."""

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if getattr(self.files, split))

    def sources(self) -> list[str]:
        return [getattr(self.files, split) for split in self.splits()]

    @model_validator(mode="after")
    def _distinct_columns(self) -> Self:
        if self.target in self.inputs:
            raise ValueError(f"target: the column '{self.target}' is also an input")
        return self
