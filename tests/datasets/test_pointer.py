"""Pointer arithmetic: rows without repeats, right answers, the published layout."""

import io
import zipfile
from itertools import product

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.datasets import pointer, table, tables
from pipeline.study.datasets.pointer import Pointer

PUBLISHED = {
    (8, 9, 5, 1, 3, 2, 9, 4, 7, 1): 8,
    (8, 9, 5, 2, 3, 2, 8, 4, 7, 1): 6,
    (8, 9, 5, 3, 3, 2, 7, 4, 7, 1): 4,
    (8, 9, 5, 4, 3, 2, 5, 4, 7, 1): 1,
    (8, 9, 5, 5, 3, 2, 4, 4, 7, 1): 1,
}


def spec(**settings) -> Pointer:
    return Pointer.model_validate({"kind": "pointer", **settings})


def by_hand(row, values: int, columns: int) -> int:
    """The answer, step by step."""
    cut = [row[i * (values + 1) : (i + 1) * (values + 1)] for i in range(columns)]
    first, last = cut[0], cut[-1]
    return abs(int(first[int(first[values])]) - int(last[int(last[values])]))


@st.composite
def settings(draw) -> Pointer:
    """Small settings, from few of the rows there are to all of them."""
    shape = {
        "max_value": draw(st.integers(1, 3)),
        "values_per_column": draw(st.integers(1, 3)),
        "columns": draw(st.integers(2, 3)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    there = spec(train=1, validation=1, test=1, **shape).distinct_rows()
    train = draw(st.integers(1, min(there - 2, 300)))
    validation = draw(st.integers(1, min(there - train - 1, 50)))
    test = draw(st.integers(1, min(there - train - validation, 50)))
    return spec(train=train, validation=validation, test=test, **shape)


@given(settings())
def test_rows_are_distinct_in_range_and_answered_right(spec):
    rows = pointer.draw(spec)
    assert rows.shape == (spec.train + spec.validation + spec.test, spec.width())
    assert len(set(map(tuple, rows.tolist()))) == len(rows)
    is_pointer = np.arange(spec.width()) % (spec.values_per_column + 1) == spec.values_per_column
    assert rows.min() >= 0
    assert rows[:, ~is_pointer].max() <= spec.max_value
    assert rows[:, is_pointer].max() < spec.values_per_column
    assert pointer.answer(rows, spec).tolist() == [by_hand(row, spec.values_per_column, spec.columns) for row in rows.tolist()]


def test_the_published_samples():
    rows = np.array(list(PUBLISHED))
    assert pointer.answer(rows, spec()).tolist() == list(PUBLISHED.values())


@pytest.mark.parametrize("wanted", [(16, 8, 8), (29, 2, 1)])
def test_every_row_there_is_comes_once_when_all_are_asked_for(wanted):
    small = spec(max_value=1, values_per_column=1, columns=5, **dict(zip(("train", "validation", "test"), wanted, strict=True)))
    rows = pointer.draw(small)
    assert set(map(tuple, rows.tolist())) == {tuple(x for v in values for x in (v, 0)) for values in product((0, 1), repeat=5)}


def test_one_row_more_than_there_are_is_refused():
    shape = {"max_value": 1, "values_per_column": 1, "columns": 5, "validation": 8, "test": 8}
    assert spec(train=16, **shape).distinct_rows() == 32
    with pytest.raises(ValidationError, match="33 rows without repeats, and only 32 different ones exist"):
        spec(train=17, **shape)
    assert spec().distinct_rows() == 1_600_000_000


def test_values_and_pointers_are_drawn_evenly():
    """Each value of each place within 5 standard deviations of its share, over 20,000 rows."""
    rows = pointer.draw(spec(train=18000))
    for place in range(10):
        there = 4 if place % 5 == 4 else 10
        share = np.bincount(rows[:, place], minlength=there) / len(rows)
        assert len(share) == there
        assert np.abs(share - 1 / there).max() < 5 * (1 / there * (1 - 1 / there) / len(rows)) ** 0.5


def test_rows_are_a_function_of_the_seed():
    assert np.array_equal(pointer.draw(spec(seed=1)), pointer.draw(spec(seed=1)))
    assert not np.array_equal(pointer.draw(spec(seed=1)), pointer.draw(spec(seed=2)))


SMALL = {"kind": "pointer", "train": 30, "validation": 20, "test": 10, "seed": 5}


def test_splits_hold_the_rows_that_were_drawn_in_order(make):
    made = make(pointer, **SMALL)
    rows = pointer.draw(spec(**SMALL))
    read = [tables.read(made, split) for split in ("train", "validation", "test")]
    assert [len(target) for _, target in read] == [30, 20, 10]
    assert np.array_equal(np.concatenate([inputs for inputs, _ in read]), rows)
    assert np.array_equal(np.concatenate([target for _, target in read]), pointer.answer(rows, spec(**SMALL)))
    assert made.facts == {"form": "table", "width": 10, "rows": {"train": 30, "validation": 20, "test": 10}}


def test_parquet_is_readable_by_anything(make):
    frame = pd.read_parquet(make(pointer, **SMALL).file("train.parquet"))
    assert list(frame.columns) == ["input", "target"]
    assert [by_hand(row, 4, 2) for row in frame["input"]] == frame["target"].tolist()


def test_xlsx_has_the_published_layout(make):
    sheet = openpyxl.load_workbook(make(pointer, **SMALL, write_xlsx=True).file("test.xlsx")).active
    header, *rows = sheet.iter_rows(values_only=True)
    assert header == ("input_list", "output_list")
    expected = pointer.draw(spec(**SMALL))[-10:]
    assert rows == [(str(row), f"[{by_hand(row, 4, 2)}]") for row in expected.tolist()]


def test_xlsx_bytes_say_nothing_of_when_they_were_written(monkeypatch):
    rows, target = np.array(list(PUBLISHED)), np.array(list(PUBLISHED.values()))
    before = pointer.published_xlsx(rows, target)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert pointer.published_xlsx(rows, target) == before
    book = zipfile.ZipFile(io.BytesIO(before))
    assert {entry.date_time for entry in book.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert b"created" not in book.read("docProps/core.xml")
    assert b"modified" not in book.read("docProps/core.xml")


def test_the_xlsx_that_is_written_reads_back_as_the_same_parquet(make):
    made = make(pointer, **SMALL, write_xlsx=True)
    files = {split: str(made.file(f"{split}.xlsx")) for split in ("train", "validation", "test")}
    again = make(table, "again", kind="table", files=files, width=10)
    for split in files:
        assert again.file(f"{split}.parquet").read_bytes() == made.file(f"{split}.parquet").read_bytes()


def test_xlsx_is_written_on_request_only(make):
    assert sorted(make(pointer, **SMALL).files) == ["test.parquet", "train.parquet", "validation.parquet"]
