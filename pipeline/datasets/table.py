"""Tables of the user's own, from .xlsx, .csv or .parquet, one file per split."""

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.artifacts.publishing import Draft
from pipeline.datasets import tables
from pipeline.study.datasets.table import Table as Spec


def write(spec: Spec, draft: Draft) -> None:
    """Reads the user's files and writes the splits."""
    splits = {}
    sources = {}
    for split in spec.splits():
        file = Path(getattr(spec.files, split))
        frame = _read(file)
        inputs = np.concatenate([_column(frame, name, file) for name in spec.inputs], axis=1)
        target = _column(frame, spec.target, file)
        if inputs.shape[1] != spec.width:
            raise UserError(f"{file}: the input columns hold {inputs.shape[1]} numbers in a row, and the study's width says {spec.width}")
        if target.shape[1] != 1:
            raise UserError(f"{file}: column '{spec.target}' holds {target.shape[1]} numbers in a row; a target is one number")
        splits[split] = (inputs, target[:, 0])
        sources[split] = sha256(file)
    tables.write(draft, splits)
    draft.facts["sources"] = sources


def _read(file: Path) -> pd.DataFrame:
    readers: dict[str, Callable[..., pd.DataFrame]] = {".xlsx": pd.read_excel, ".csv": pd.read_csv, ".parquet": pd.read_parquet}
    try:
        frame = readers[file.suffix](file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: not readable as {file.suffix}: {' '.join(str(error).split())}") from None
    if not len(frame):
        raise UserError(f"{file}: has no rows")
    return frame


def _column(frame: pd.DataFrame, name: str, file: Path) -> np.ndarray:
    """A column as float64 (rows, numbers in a cell); every cell has as many as the first."""
    if name not in frame:
        raise UserError(f"{file}: has no column '{name}' (columns: {', '.join(map(str, frame.columns))})")
    rows: list[list[float]] = []
    for number, cell in enumerate(frame[name], start=2):
        values = _numbers(cell)
        if values is None or not np.isfinite(values).all():
            raise UserError(f"{file}: row {number}: column '{name}': {cell!r} is neither a number nor a list of numbers")
        if rows and len(values) != len(rows[0]):
            raise UserError(f"{file}: row {number}: column '{name}' has {len(values)} numbers, and the rows above have {len(rows[0])}")
        rows.append(values)
    return np.array(rows, dtype=np.float64)


def _numbers(cell: Any) -> list[float] | None:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    values = list(cell) if isinstance(cell, Iterable) else [cell]
    numbers = all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values)
    return [float(value) for value in values] if values and numbers else None
