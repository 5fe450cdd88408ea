"""Training curves: one row of numbers per measurement, as a Parquet file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class Curve:
    """Rows of named numbers. One that a row lacks is null there."""

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows: list[dict[str, float]] = [] if rows is None else rows

    def add(self, **numbers: float) -> None:
        """One measurement."""
        self.rows.append(numbers)

    def write(self, path: Path) -> None:
        """Writes the rows as Parquet."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        pq.write_table(pa.table({name: [row.get(name) for row in self.rows] for name in names}), path)
