"""Training curves: one row of numbers per measurement, as a Parquet file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class Curve:
    """Rows of named numbers, all with the same names."""

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows: list[dict[str, float]] = [] if rows is None else rows

    def add(self, **numbers: float) -> None:
        """One measurement."""
        self.rows.append(numbers)

    def write(self, path: Path) -> None:
        """Writes the rows as Parquet."""
        pq.write_table(pa.Table.from_pylist(self.rows), path)
