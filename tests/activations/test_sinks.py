"""Attention sinks: rows far from the others are flagged, counted, and left out of statistics; each shard can tell alone."""

import numpy as np
import pytest
from harvests import HOOKS, SPEC, gpt, ids

from tests.stores import harvested


@pytest.fixture
def rows() -> np.ndarray:
    """200 rows of norm about 2, seven of them far away."""
    generator = np.random.default_rng(0)
    found = generator.normal(size=(200, 4)).astype(np.float32)
    found[[0, 20, 60, 61, 150, 198, 199]] *= 100
    return found


def sample(rows: np.ndarray, batch: int, length: int) -> np.ndarray:
    """Norms of `batch` sequences spread evenly."""
    whole = len(rows) // length
    starts = [n * whole // batch * length for n in range(batch)]
    return np.linalg.norm(np.concatenate([rows[start : start + length] for start in starts]).astype(np.float64), axis=1)


@pytest.mark.parametrize("times", [1.1, 2, 10, 1000])
def test_rows_above_so_many_times_the_median_of_the_sample_are_flagged(make_store, rows, times):
    store = make_store(rows, length=5, batch=8, sinks_above=times)
    about = store.attributes["hooks"]["x"]["sinks"]
    median = float(f"{np.sort(sample(rows, 8, 5))[19]:.4g}")
    assert (about["times"], about["median"], about["above"]) == (times, median, times * median)
    flagged = np.linalg.norm(rows.astype(np.float64), axis=1) > times * median
    assert np.array_equal(store["sinks/x"].read(0, 200), flagged)
    assert about["rows"] == store.artifact.facts["hooks"]["x"]["sinks"] == flagged.sum()
    assert (flagged.sum() == 7) == (times == 10)
    assert np.array_equal(store["x"].read(0, 200), rows), "flagged rows are stored like others"


def test_statistics_are_those_of_the_rows_that_are_not_flagged(make_store, rows):
    store = make_store(rows, length=5, covariance=["x"], sinks_above=10)
    kept = rows[~store["sinks/x"].read(0, 200)].astype(np.float64)
    assert len(kept) == store["x"].kept_rows() == 193
    np.testing.assert_allclose(store.mean("x"), kept.mean(0), rtol=1e-12)
    np.testing.assert_allclose(store.covariance("x"), np.cov(kept.T, bias=True), rtol=1e-9)
    assert store.variance("x") == pytest.approx(kept.var(0).sum(), rel=1e-12)
    assert store.mean_squared_norm("x") == pytest.approx(np.square(kept).sum(1).mean(), rel=1e-12)


def test_sparse_rows_are_flagged_as_dense_ones_are(make_store, rows):
    rows = np.maximum(rows, 0)
    dense, sparse = (make_store(rows, length=5, name=name, sparse=hooks) for name, hooks in (("dense", []), ("sparse", ["x"])))
    assert np.array_equal(dense["sinks/x"].read(0, 200), sparse["sinks/x"].read(0, 200))
    assert sparse.attributes["hooks"]["x"]["sinks"]["rows"] == dense.attributes["hooks"]["x"]["sinks"]["rows"] == 6, (
        "one of them is all negative"
    )
    np.testing.assert_allclose(sparse.mean("x"), dense.mean("x"), rtol=1e-12)


def test_null_flags_nothing_and_writes_no_flags(make_store, rows):
    store = make_store(rows, length=5, sinks_above=None)
    assert store.attributes["hooks"]["x"]["sinks"] is None
    assert store.artifact.facts["hooks"]["x"] == {"width": 4}
    assert not [name for name in store.artifact.files if "sinks" in name]
    np.testing.assert_allclose(store.mean("x"), rows.mean(0, dtype=np.float64), rtol=1e-9)
    assert store["x"].kept_rows() == 200


def test_where_the_median_is_zero_nothing_is_flagged(make_store):
    rows = np.zeros((40, 3))
    rows[:10] = 5
    store = make_store(rows, length=1, batch=40)
    assert store.attributes["hooks"]["x"]["sinks"] == {"times": 10.0, "median": 0.0, "above": None, "rows": 0}
    assert not store["sinks/x"].read(0, 40).any()


def test_each_hook_has_its_own(tmp_path, make_tokens):
    store = harvested(tmp_path / "store", gpt(), make_tokens(ids(), 11), 8, **{**SPEC, "sinks_above": 1.2})
    found = {hook: store[f"sinks/{hook}"].read(0, 61) for hook in HOOKS}
    for hook in HOOKS:
        about = store.attributes["hooks"][hook]["sinks"]
        norms = np.linalg.norm(store[hook].read(0, 61).astype(np.float64), axis=1)
        assert np.array_equal(found[hook], norms > 1.2 * about["median"])
        assert about["rows"] == found[hook].sum() > 0
    assert not np.array_equal(*found.values())


def test_the_median_is_of_the_rows_that_are_kept(tmp_path, make_tokens):
    """A special token's own norm, often huge, is in no statistics and in no sample."""
    table = np.ones((11, 3), dtype=np.float32)
    table[0] = 1000

    class Table:
        def __call__(self, inputs, tap):
            import torch

            return tap("x", torch.from_numpy(table)[inputs])

    dataset = make_tokens([0, 1, 0, 2] * 20, 11, special=[0])
    store = harvested(tmp_path / "store", Table(), dataset, 4, chunk_rows=4, shard_rows=8)
    assert store.attributes["hooks"]["x"]["sinks"]["median"] == 1.732
    assert store.attributes["hooks"]["x"]["sinks"]["rows"] == 0
