"""Tables of the user's own: three formats, one result; what is wrong is named by file and row."""

import json

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.datasets import table, tables
from pipeline.study.datasets.table import Table

ROWS = np.array([[5, 0, 3], [1, -2, 2.5], [0, 0, 7]])
TARGET = [2, 0.25, -1]


def save(frame: pd.DataFrame, path) -> str:
    """Writes a frame in the format of the file's name."""
    {".csv": frame.to_csv, ".xlsx": frame.to_excel, ".parquet": frame.to_parquet}[path.suffix](path, index=False)
    return str(path)


def lists() -> pd.DataFrame:
    return pd.DataFrame({"input_list": [json.dumps(row) for row in ROWS.tolist()], "output_list": [f"[{y}]" for y in TARGET]})


def columns() -> pd.DataFrame:
    return pd.DataFrame({"y": TARGET, "c": ROWS[:, 2], "a": ROWS[:, 0], "unused": ["x", "y", "z"], "b": ROWS[:, 1]})


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
@pytest.mark.parametrize(
    ("frame", "settings"),
    [(lists, {}), (columns, {"inputs": ["a", "b", "c"], "target": "y"})],
    ids=["a list in a cell", "a number in a cell"],
)
def test_every_format_and_layout_gives_the_same_rows(make, tmp_path, suffix, frame, settings):
    file = save(frame(), tmp_path / f"rows{suffix}")
    made = make(table, kind="table", files={"train": file}, width=3, **settings)
    rows, target = tables.read(made, "train")
    assert np.array_equal(rows, ROWS)
    assert np.array_equal(target, TARGET)
    assert rows.dtype == target.dtype == np.float32
    assert list(made.files) == ["train.parquet"]
    assert made.facts["sources"] == {"train": sha256(tmp_path / f"rows{suffix}")}


def test_parquet_lists_are_read_as_lists(make, tmp_path):
    frame = pd.DataFrame({"input_list": ROWS.tolist(), "output_list": TARGET})
    made = make(table, kind="table", files={"train": save(frame, tmp_path / "rows.parquet")}, width=3)
    assert np.array_equal(tables.read(made, "train")[0], ROWS)


def test_input_columns_stand_side_by_side_in_the_order_named(make, tmp_path):
    frame = pd.DataFrame({"pair": ["[1, 2]", "[3, 4]"], "one": [5, 6], "y": [0, 1]})
    made = make(table, kind="table", files={"train": save(frame, tmp_path / "a.csv")}, width=3, inputs=["one", "pair"], target="y")
    assert tables.read(made, "train")[0].tolist() == [[5, 1, 2], [6, 3, 4]]


@pytest.mark.parametrize(
    ("cell", "row", "words"),
    [
        ("[5, 0, 'x']", 3, "neither a number nor a list of numbers"),
        ("[5, 0, true]", 3, "neither a number nor a list of numbers"),
        ("[5, [0], 3]", 3, "neither a number nor a list of numbers"),
        ("[5, 0, NaN]", 3, "neither a number nor a list of numbers"),
        ("[5, 0, 1e999]", 3, "neither a number nor a list of numbers"),
        ("[]", 3, "neither a number nor a list of numbers"),
        ("5 0 3", 3, "neither a number nor a list of numbers"),
        ("{}", 3, "neither a number nor a list of numbers"),
        (None, 3, "neither a number nor a list of numbers"),
        ("[5, 0]", 3, "has 2 numbers, and the rows above have 3"),
        ("[5, 0, 3, 1]", 3, "has 4 numbers, and the rows above have 3"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_bad_cell_is_named_by_file_and_row_as_the_file_counts_them(make, tmp_path, suffix, cell, row, words):
    frame = lists()
    frame.loc[row - 2, "input_list"] = cell
    file = save(frame, tmp_path / f"rows{suffix}")
    with pytest.raises(UserError, match=words) as caught:
        make(table, kind="table", files={"train": file}, width=3)
    assert str(caught.value).startswith(f"{file}: row {row}: column 'input_list'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 4}, "3 numbers in a row, and the study's width says 4"),
        ({"width": 3, "target": "output"}, "has no column 'output' (columns: input_list, output_list)"),
        ({"width": 3, "inputs": ["input"]}, "has no column 'input'"),
        ({"width": 1, "inputs": ["output_list"], "target": "input_list"}, "column 'input_list' holds 3 numbers in a row; a target is one"),
    ],
)  # fmt: skip
def test_a_table_of_another_shape_is_refused(make, tmp_path, settings, words):
    file = save(lists(), tmp_path / "rows.csv")
    with pytest.raises(UserError) as caught:
        make(table, kind="table", files={"train": file}, **settings)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.csv", None),
        ("empty.csv", b""),
        ("header.csv", b"input_list,output_list\n"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n"),
        ("latin.csv", b"input_list,output_list\n\xff\xfe,1\n"),
        ("text.xlsx", b"hello"),
        ("empty.xlsx", b""),
        ("broken.xlsx", b"PK\x03\x04" + bytes(100)),
        ("text.parquet", b"hello"),
        ("broken.parquet", b"PAR1" + bytes(100) + b"PAR1"),
    ],
)
def test_a_file_that_is_no_table_is_named_on_one_line(make, tmp_path, name, content):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        make(table, kind="table", files={"train": str(file)}, width=3)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"files": {"train": "rows.txt"}, "width": 3}, "has to end in .xlsx, .csv, .parquet"),
        ({"files": {"train": "rows.csv"}}, "Field required"),
        ({"files": {"test": "rows.csv"}, "width": 3}, "Field required"),
        ({"files": {"train": "rows.csv"}, "width": 3, "inputs": ["y"], "target": "y"}, "also an input"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_file_is_read(settings, words):
    with pytest.raises(ValidationError, match=words):
        Table.model_validate({"kind": "table", **settings})


def test_splits_are_those_that_have_a_file():
    some = Table.model_validate({"kind": "table", "files": {"train": "a.csv", "test": "b.csv"}, "width": 1})
    assert some.splits() == ("train", "test")
    assert some.sources() == ["a.csv", "b.csv"]
