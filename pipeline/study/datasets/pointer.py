"""Pointer arithmetic: a task whose algorithm is known, so that what a model learned can be checked."""

from math import log2
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from pipeline.study.base import Count, Seed
from pipeline.study.dataset import SPLITS, Dataset


class Pointer(Dataset):
    """Rows `[v0 .. p | w0 .. q]` with target `|v[p] - w[q]|`, drawn without repeats.

    Each of `columns` columns holds `values_per_column` values and a pointer into them; the target compares what the first
    and the last column point at.
    """

    form: ClassVar[str] = "table"

    kind: Literal["pointer"]
    train: Count = 8000
    """Rows of the train split."""
    validation: Count = 1000
    """Rows of the validation split."""
    test: Count = 1000
    """Rows of the test split."""
    max_value: Count = 9
    """Values are drawn from 0 to this number, both included."""
    values_per_column: Count = 4
    """Values in a column; the pointer ranges over them."""
    columns: Count = 2
    """Columns in a row, at least two."""
    seed: Seed = 0
    """Seed of the rows."""
    write_xlsx: bool = False
    """Also write each split as .xlsx in the published layout (text columns `input_list`, `output_list`)."""

    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def width(self) -> int:
        """Numbers in one row of input."""
        return self.columns * (self.values_per_column + 1)

    def distinct_rows(self) -> int:
        """How many different rows these settings allow."""
        return ((self.max_value + 1) ** self.values_per_column * self.values_per_column) ** self.columns

    @model_validator(mode="after")
    def _enough_rows(self) -> Self:
        if self.columns < 2:
            raise ValueError("columns: at least 2 are needed, since the target compares the first and the last")
        bits = self.values_per_column * log2(self.max_value + 1) + log2(self.values_per_column)
        if self.columns * bits >= 62:
            raise ValueError("columns: so long a row has more different values than 64 bits can count")
        wanted = self.train + self.validation + self.test
        if wanted > self.distinct_rows():
            exist = f"only {self.distinct_rows():,} different ones exist"
            raise ValueError(f"train + validation + test asks for {wanted:,} rows without repeats, and {exist}")
        return self
