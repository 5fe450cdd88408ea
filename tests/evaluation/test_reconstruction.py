"""How well an SAE reconstructs: hand-computed numbers, and what has to hold for any numbers."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.evaluation.reconstruction import Reconstruction


def fve(x, x_hat) -> float:
    return Reconstruction.of(torch.as_tensor(x), torch.as_tensor(x_hat)).finish()["fve"]


@st.composite
def rows(draw):
    """Rows x and reconstructions of them, of about unit size."""
    seed, n, width = draw(st.integers(0, 2**32 - 1)), draw(st.integers(2, 30)), draw(st.integers(1, 6))
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, width))
    return x, x + draw(st.sampled_from([0.0, 0.1, 1.0, 3.0])) * generator.normal(size=(n, width))


def test_by_hand():
    """x has mean (2, 3): squared distances 1 + 1 + 4 + 4 = 10. Errors: 1, 0, 0, 4."""
    x = torch.tensor([[1.0, 3.0], [3.0, 3.0], [2.0, 1.0], [2.0, 5.0]])
    x_hat = torch.tensor([[1.0, 2.0], [3.0, 3.0], [2.0, 1.0], [2.0, 3.0]])
    assert Reconstruction.of(x, x_hat).finish() == {
        "fve": pytest.approx(1 - 5 / 10),
        "mse": pytest.approx(5 / 4),
        "mse_per_dim": pytest.approx(5 / 8),
        "relative_reconstruction_bias": pytest.approx((5 + 18 + 5 + 13) / (7 + 18 + 5 + 19)),
    }


@given(rows())
def test_a_perfect_reconstruction_explains_everything(given):
    x, _ = given
    found = Reconstruction.of(torch.from_numpy(x), torch.from_numpy(x)).finish()
    assert (found["fve"], found["mse"]) == (1, 0)
    assert found["relative_reconstruction_bias"] == pytest.approx(1)


@given(rows(), st.sampled_from([0.0, 1.0, 100.0]))
def test_predicting_the_mean_explains_nothing_wherever_the_rows_lie(given, offset):
    x = given[0] + offset
    assert fve(x, np.broadcast_to(x.mean(0), x.shape).copy()) == pytest.approx(0, abs=1e-6)


@given(rows(), st.floats(-100, 100), st.floats(0.01, 100))
def test_offset_and_scale_do_not_count(given, offset, scale):
    x, x_hat = given
    assert fve(scale * x + offset, scale * x_hat + offset) == pytest.approx(fve(x, x_hat), rel=1e-5, abs=1e-5)


@given(rows(), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_the_cut_into_batches_do_not_count(given, chance):
    x, x_hat = (torch.from_numpy(one) for one in given)
    whole = Reconstruction.of(x, x_hat).finish()
    order = chance.sample(range(len(x)), len(x))
    sizes = []
    while sum(sizes) < len(x):
        sizes.append(chance.randint(1, len(x) - sum(sizes)))
    parts = [Reconstruction.of(a, b) for a, b in zip(x[order].split(sizes), x_hat[order].split(sizes), strict=True)]
    chance.shuffle(parts)
    assert sum(parts[1:], parts[0]).finish() == pytest.approx(whole, rel=1e-9, abs=1e-12)


@given(rows())
def test_it_is_the_share_of_numpys_variance(given):
    x, x_hat = given
    found = Reconstruction.of(torch.from_numpy(x), torch.from_numpy(x_hat)).finish()
    assert found["fve"] == pytest.approx(1 - ((x - x_hat) ** 2).mean() / x.var(0).mean(), rel=1e-9, abs=1e-9)
    assert found["mse"] == pytest.approx(((x - x_hat) ** 2).sum(1).mean())
    assert found["mse_per_dim"] == pytest.approx(((x - x_hat) ** 2).mean())


@given(rows(), st.floats(0.1, 0.9))
def test_shrunk_reconstructions_have_a_bias_below_one(given, shrink):
    """A perfect direction, its length times s: the bias is s."""
    x = torch.from_numpy(given[0])
    assert Reconstruction.of(x, shrink * x).finish()["relative_reconstruction_bias"] == pytest.approx(shrink)


def test_a_mean_of_means_would_be_wrong():
    """Three batches, each constant: within a batch there is no variance at all."""
    x = torch.tensor([[0.0], [0.0], [4.0], [4.0], [5.0], [5.0]])
    parts = [Reconstruction.of(one, one + 1) for one in x.split(2)]
    assert sum(parts[1:], parts[0]).finish()["fve"] == pytest.approx(1 - 6 / 28)


def test_sums_are_float64():
    """In float32 the rounding of a million squares of 1000 would hide this error."""
    x = torch.full((1000, 1000), 1000.0)
    x[::2] += 1
    found = Reconstruction.of(x, x + 0.125).finish()
    assert found["fve"] == pytest.approx(1 - 0.015625 / 0.25, rel=1e-6)


def test_without_variance_there_is_no_share_of_it():
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert Reconstruction.of(x, x + 1).finish()["fve"] is None
    assert Reconstruction.of(x, 0 * x).finish()["relative_reconstruction_bias"] is None


@given(st.integers(0, 2**32 - 1), st.integers(2, 300))
def test_a_constant_has_no_variance_whatever_it_is(seed, n):
    """And not the 1e-13 by which its float sums differ."""
    constant = 10 * np.random.default_rng(seed).normal(size=8).astype(np.float32)
    assume(np.abs(constant).min() > 1e-3)
    x = torch.from_numpy(np.tile(constant, (n, 1)))
    assert Reconstruction.of(x, x + 0.5).finish()["fve"] is None
