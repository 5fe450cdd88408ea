"""Units from a store's statistics, the geometric median, and the fixed sample of rows that is read for it."""

import numpy as np
import pytest
import torch

from pipeline.saes.normalise import geometric_median, units
from pipeline.saes.sample import sample
from pipeline.study.sae import Normalise


def test_the_geometric_median_of_a_triangle_is_its_fermat_point():
    """Of an isosceles right triangle with legs 1: both coordinates are (3 - sqrt 3) / 6."""
    found = geometric_median(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(found, torch.full((2,), (3 - 3**0.5) / 6), rtol=1e-6, atol=1e-6)


def test_the_geometric_median_is_a_point_where_most_rows_lie():
    """More than half of the weight at one point holds it there, wherever the others go; the mean follows them."""
    x = torch.tensor([[1.0, 2.0]] * 4 + [[1e3, 0.0], [0.0, -1e4], [5.0, 5.0]])
    torch.testing.assert_close(geometric_median(x), torch.tensor([1.0, 2.0]), rtol=1e-4, atol=1e-4)


def test_the_geometric_median_of_a_line_is_its_median():
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [500.0]])
    torch.testing.assert_close(geometric_median(x), torch.tensor([2.0]), rtol=1e-4, atol=1e-4)


def test_the_geometric_median_of_one_row_is_the_row():
    assert torch.equal(geometric_median(torch.tensor([[3.0, 4.0]])), torch.tensor([3.0, 4.0]))


def test_whitening_and_its_inverse(make_store):
    """A direction that hardly varies does not blow up; the way back is the way back."""
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(500, 5)) @ generator.normal(size=(5, 5)) + 3
    values = np.concatenate([mixed, mixed[:, :1] * 0 + 2.5], axis=1)
    store = make_store(values, chunk_rows=50, shard_rows=100, covariance=["x"])
    found, variance = units(store, "x", Normalise(centre=True, scale="whiten"))
    x = torch.from_numpy(values.astype(np.float32))
    inside = found.apply(x)
    assert inside.isfinite().all()
    torch.testing.assert_close(inside.T @ inside / 500, torch.diag(torch.tensor([1.0] * 5 + [0.0])), rtol=1e-2, atol=1e-2)
    assert variance == pytest.approx(inside.var(0, correction=0).sum().item(), rel=1e-3)
    torch.testing.assert_close(found.back(inside), x, rtol=1e-3, atol=1e-3)


def test_a_sample_of_a_small_store_is_all_of_it(make_store):
    values = np.arange(60.0).reshape(20, 3)
    assert np.array_equal(sample(make_store(values, sinks_above=None), ["x"], 50)["x"], values.astype(np.float32))


def test_a_sample_is_spread_over_the_store(make_store):
    values = np.repeat(np.arange(1.0, 1001)[:, None], 3, axis=1)
    found = sample(make_store(values, chunk_rows=10, shard_rows=100, sinks_above=None), ["x"], 512)["x"][:, 0].numpy()
    assert len(found) == len(set(found.tolist())) == 512
    assert np.histogram(found, bins=10, range=(1, 1001))[0].min() > 45


def test_flagged_rows_are_in_no_sample(make_store):
    values = np.ones((100, 3)) + np.random.default_rng(0).normal(size=(100, 3)) * 0.1
    values[[3, 50, 77]] *= 1000
    found = sample(make_store(values, chunk_rows=10, shard_rows=50), ["x"], 1000)["x"]
    assert len(found) == 97
    assert found.max() < 10
