"""The store: what was written is what is read, and no damage passes for data."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import DamagedArtifact
from pipeline.artifacts.manifest import MANIFEST

ARRAYS = ("x", "token", "sequence", "position")


def values(rows: int, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, size=(rows, width)).astype(np.float32)


@pytest.fixture
def store(make_store) -> ActivationStore:
    """21 rows in three shards, the last one partial; sequences of 5, the last one shorter."""
    return make_store(values(21), length=5)


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """Every array, through a store opened anew."""
    store = ActivationStore(folder / MANIFEST)
    return {name: store[name].read(0, len(store)) for name in ARRAYS}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 4),
    chunk=st.integers(1, 6),
    chunks=st.integers(1, 4),
    batch=st.integers(1, 12),
    start=st.integers(0, 40),
    count=st.integers(1, 40),
)
def test_any_rows_are_read_as_they_were_recorded(make_store, tmp_path, rows, width, chunk, chunks, batch, start, count):
    given = values(rows, width)
    for folder in ("store", "store-rows"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    store = make_store(given, chunk_rows=chunk, shard_rows=chunk * chunks, batch=batch)
    assert np.array_equal(store["x"].read(0, rows), given)
    assert np.array_equal(store["x"].read(min(start, rows), start + count), given[start : start + count])
    assert (len(store), store["x"].shape, len(store["x"])) == (rows, (rows, width), rows)


def test_the_row_index_says_which_token_of_which_sequence(store):
    assert store["token"].read(0, 21).tolist() == list(range(21))
    assert store["sequence"].read(0, 21).tolist() == [i // 5 for i in range(21)]
    assert store["position"].read(0, 21).tolist() == [i % 5 for i in range(21)]
    assert {name: store[name].read(0, 1).dtype.str for name in ARRAYS} == {"x": "<f4", "token": "<i4", "sequence": "<i8", "position": "<i4"}


def test_rows_of_a_table_are_sequences_of_one_without_a_token(make_store):
    store = make_store(values(9))
    assert store["token"].read(0, 9).tolist() == [-1] * 9
    assert store["sequence"].read(0, 9).tolist() == list(range(9))
    assert store["position"].read(0, 9).tolist() == [0] * 9


def test_plain_zarr_reads_the_same(store):
    group = zarr.open_group(store.artifact.folder / "store.zarr", mode="r")
    assert np.array_equal(group["x"][:], values(21))
    assert np.array_equal(group["sequence"][:], np.arange(21) // 5)
    assert group["x"].chunks == (4, 5)
    assert group["x"].shards == (8, 5)
    about = group.attrs["saeflow"]
    assert (about["rows"], about["dtype"], about["hooks"]["x"]["width"]) == (21, "float32", 5)


def test_the_format_is_as_the_design_says(store):
    """Zarr v3, little-endian, a crc32c in every chunk and over the index of every shard."""
    for name in ARRAYS:
        about = json.loads((store.artifact.folder / "store.zarr" / name / "zarr.json").read_text())
        assert (about["zarr_format"], about["node_type"]) == (3, "array")
        (sharding,) = about["codecs"]
        assert sharding["name"] == "sharding_indexed"
        assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "crc32c"]
        assert sharding["configuration"]["codecs"][0]["configuration"] == {"endian": "little"}
        assert "crc32c" in [codec["name"] for codec in sharding["configuration"]["index_codecs"]]


def test_attributes_are_those_of_the_rows(make_store):
    given = values(37, seed=4)
    store = make_store(given)
    exact = given.astype(np.float64)
    np.testing.assert_allclose(store.mean("x"), exact.mean(0), rtol=1e-12)
    assert store.mean_squared_norm("x") == pytest.approx((exact**2).sum(1).mean(), rel=1e-12)
    assert store.variance("x") == pytest.approx(exact.var(0).sum(), rel=1e-9)


def test_rows_of_zeros_are_written(make_store):
    """A chunk that is left out because it is zero could not be told from a shard that was lost."""
    store = make_store(np.zeros((21, 5)))
    folder = store.artifact.folder
    chunk, index = 4 * 5 * 4 + 4, 2 * 16 + 4  # each with its crc32c
    assert [path.stat().st_size for path in sorted((folder / "store.zarr/x/c").glob("*/0"))] == [2 * chunk + index] * 3
    assert not store["x"].read(0, 21).any()
    (folder / "store.zarr/x/c/1/0").unlink()
    with pytest.raises(DamagedArtifact, match=r"rows 8-15 of x.*missing"):
        ActivationStore(folder / MANIFEST)["x"].read(0, 21)


def named(folder: Path, path: Path, words: str = "") -> None:
    """Reading tells of this file, its rows and the repair, on one line."""
    with pytest.raises(DamagedArtifact) as caught:
        read_all(folder)
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert message.endswith(f"repair: python -m pipeline repair {folder / MANIFEST}")
    assert "\n" not in message
    assert words in message


def rows_of(path: Path) -> str:
    """What the message says of a shard."""
    parts = path.parts[path.parts.index("store.zarr") + 1 :]
    number = int(parts[2])
    return f"(rows {8 * number}-{min(8 * number + 8, 21) - 1} of {parts[0]})"


@pytest.fixture(autouse=True)
def default_study(monkeypatch):
    monkeypatch.delenv("SAEFLOW_CONFIGFILES", raising=False)


def test_a_flip_of_any_bit_of_any_file_is_found_and_named(store):
    folder = store.artifact.folder
    before = read_all(folder)
    chance = random.Random(0)
    files = [path for path in (folder / "store.zarr").rglob("*") if path.is_file()]
    assert len(files) == 4 * 3 + 4 + 1
    for path in [*files, *chance.choices(files, k=30)]:
        content = path.read_bytes()
        at = chance.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :])
        named(folder, path, rows_of(path) if path.name != "zarr.json" else "differ")
        path.write_bytes(content)
    assert all(np.array_equal(now, before[name]) for name, now in read_all(folder).items())


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", ["deleted", "emptied", "truncated", "longer", "swapped"])
def test_a_shard_that_is_not_as_published_is_named_with_its_rows(store, name, damage):
    folder = store.artifact.folder
    one, other = (folder / f"store.zarr/{name}/c/{n}{'/0' if name == 'x' else ''}" for n in (0, 1))
    if damage == "deleted":
        one.unlink()
    elif damage == "emptied":
        one.write_bytes(b"")
    elif damage == "truncated":
        one.write_bytes(one.read_bytes()[:-1])
    elif damage == "longer":
        one.write_bytes(one.read_bytes() + b"\0")
    elif damage == "swapped":
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    words = {"deleted": "missing", "emptied": "empty", "swapped": f"holds the bytes of store.zarr/{name}/c/1"}.get(damage, "bytes, and")
    named(folder, one, words)
    named(folder, one, rows_of(one))


def test_rows_of_whole_shards_are_read_though_another_is_damaged(store):
    folder = store.artifact.folder
    (folder / "store.zarr/x/c/2/0").unlink()
    column = ActivationStore(folder / MANIFEST)["x"]
    assert np.array_equal(column.read(0, 16), values(21)[:16])
    with pytest.raises(DamagedArtifact, match="rows 16-20 of x"):
        column.read(15, 17)


@pytest.mark.parametrize(("size", "rows"), [(1, None), (3, None), (4, 9), (8, 21), (5, 100), (100, None), (100, 1)])
def test_batches_are_the_rows_in_order_and_no_chunk_is_read_twice_where_the_size_divides_it(store, monkeypatch, size, rows):
    column = store["x"]
    read, seen = column.read, []
    monkeypatch.setattr(column, "read", lambda start, stop: seen.append((start, stop)) or read(start, stop))
    batches = list(column.batches(size, rows))
    kept = min(rows or 21, 21)
    assert np.array_equal(np.concatenate(batches), values(21)[:kept])
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert len(batches) == -(-kept // size)
    if size in (1, 4):
        assert [start // 4 for start, _ in seen] == list(range(-(-kept // 4)))


def test_damage_after_the_first_look_is_found_by_the_checksum_of_the_chunk(store):
    """A shard's hash is checked once in a process; its crc32c whenever a chunk is read."""
    folder = store.artifact.folder
    column = store["x"]
    column.read(0, 21)
    path = folder / "store.zarr/x/c/1/0"
    content = path.read_bytes()
    path.write_bytes(content[:30] + bytes([content[30] ^ 4]) + content[31:])
    assert np.array_equal(column.read(0, 8), values(21)[:8])
    with pytest.raises(DamagedArtifact, match=r"rows 8-11.*repair: "):
        column.read(8, 12)


def test_a_store_without_its_manifest_is_none(store):
    folder = store.artifact.folder
    (folder / MANIFEST).unlink()
    with pytest.raises(DamagedArtifact, match="never finished"):
        ActivationStore(folder / MANIFEST)
