"""Pointer arithmetic rows: `[v0 .. p | w0 .. q]` with target `|v[p] - w[q]|`.

- every row is a number in a mixed radix, so "without repeats" is "different numbers"
- drawn from one seeded stream, then cut into splits: no row is in two splits
"""

import io
import zipfile

import numpy as np
import openpyxl

from pipeline.artifacts.publishing import Draft
from pipeline.datasets import tables
from pipeline.study.datasets.pointer import Pointer as Spec

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write(spec: Spec, draft: Draft) -> None:
    """Draws the rows and writes the splits, as .xlsx too where the spec asks for it."""
    rows = draw(spec)
    target = answer(rows, spec)
    cuts = np.cumsum([spec.train, spec.validation])
    splits = dict(zip(spec.splits(), zip(np.split(rows, cuts), np.split(target, cuts), strict=True), strict=True))
    tables.write(draft, splits)
    if spec.write_xlsx:
        for split, (inputs, targets) in splits.items():
            draft.path(f"{split}.xlsx").write_bytes(published_xlsx(inputs, targets))


def draw(spec: Spec) -> np.ndarray:
    """All rows of all splits, int64 (rows, width), no two equal."""
    wanted = spec.train + spec.validation + spec.test
    generator = np.random.default_rng(spec.seed)
    total = spec.distinct_rows()
    if total <= 4 * wanted:
        numbers = generator.permutation(total)[:wanted]
    else:
        numbers = np.empty(0, dtype=np.int64)
        while len(numbers) < wanted:
            drawn = np.concatenate([numbers, generator.integers(0, total, wanted)])
            first = np.unique(drawn, return_index=True)[1]
            numbers = drawn[np.sort(first)][:wanted]
    radices = ([spec.max_value + 1] * spec.values_per_column + [spec.values_per_column]) * spec.columns
    digits = []
    for radix in reversed(radices):
        numbers, digit = np.divmod(numbers, radix)
        digits.append(digit)
    return np.stack(digits[::-1], axis=1)


def answer(rows: np.ndarray, spec: Spec) -> np.ndarray:
    """The target of each row: |v[p] - w[q]| with v, p the first column of values and w, q the last. Shape (rows,)."""
    column = spec.values_per_column + 1
    first, last = rows[:, :column], rows[:, -column:]
    pointed = [np.take_along_axis(one, one[:, -1:], axis=1)[:, 0] for one in (first, last)]
    return np.abs(pointed[0] - pointed[1])


def published_xlsx(rows: np.ndarray, target: np.ndarray) -> bytes:
    """A workbook in the published layout: text columns `input_list` and `output_list`. Equal rows give equal bytes."""
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(["input_list", "output_list"])
    for row, value in zip(rows.tolist(), target.tolist(), strict=True):
        sheet.append([str(row), f"[{value}]"])
    written = io.BytesIO()
    book.save(written)
    return _without_dates(written.getvalue())


def _without_dates(workbook: bytes) -> bytes:
    """The workbook without the times that openpyxl notes in it and in its zip entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(workbook)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in sorted(old.namelist()):
            content = old.read(name)
            if name == "docProps/core.xml":
                content = b'<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties"/>'
            new.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()
