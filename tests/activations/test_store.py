"""The store: what was written is what is read."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
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


def test_a_store_without_its_manifest_is_none(store):
    folder = store.artifact.folder
    (folder / MANIFEST).unlink()
    with pytest.raises(DamagedArtifact, match="never finished"):
        ActivationStore(folder / MANIFEST)


@pytest.mark.parametrize("sparse", [[], ["x"]])
@pytest.mark.parametrize("compression", ["none", "zstd", "blosc"])
def test_threads_may_read_one_column_at_the_same_time(make_store, sparse, compression):
    given = values(403, 7)
    column = make_store(given, chunk_rows=2, shard_rows=6, sparse=sparse, compression=compression)["x"]
    starts = np.random.default_rng(1).integers(0, 400, 200)
    with ThreadPoolExecutor(8) as threads:
        for start, found in zip(starts, threads.map(lambda start: column.read(start, start + 3), starts), strict=True):
            assert np.array_equal(found, given[start : start + 3])
