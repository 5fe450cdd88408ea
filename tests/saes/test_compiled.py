"""Compiled loops against PyTorch, at shapes at which their tables have several tiles and threads share them."""

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.saes import compiled, decoder
from pipeline.saes.kernels import Active

ROWS, WIDTH, LATENTS = 301, 130, 5000


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[3, 150], ids=["few", "many in a tile"])
def active(request) -> Active:
    """Rows with none to about `param` active latents; the table is 2.6 MB, three tiles."""
    share = torch.rand(ROWS, 1, generator=torch.Generator().manual_seed(0)) * request.param * 2 / LATENTS
    mask = torch.rand(ROWS, LATENTS, generator=torch.Generator().manual_seed(1)) < share
    mask[[0, 7, ROWS - 1]] = False
    return Active.where(mask)


def looped(loop, rows: int, *given, out: Tensor) -> Tensor:
    compiled.parallel(loop, rows, *given, out)
    return out


def test_inner_products(active):
    left, right = random(ROWS, WIDTH, seed=2), random(LATENTS, WIDTH, seed=3)
    found = looped(compiled.inner, ROWS, left, right, *active.compact, out=torch.empty(len(active.index)))
    torch.testing.assert_close(found.double(), (left.double()[active.row] * right.double()[active.index]).sum(1), rtol=1e-4, atol=1e-4)


def test_inner_products_of_pairs_in_no_order():
    index = torch.stack([torch.randperm(LATENTS, generator=torch.Generator().manual_seed(row))[:80] for row in range(ROWS)])
    active = Active.chosen(index, LATENTS)
    left, right = random(ROWS, WIDTH, seed=2), random(LATENTS, WIDTH, seed=3)
    found = looped(compiled.inner, ROWS, left, right, *active.compact, out=torch.full((len(active.index),), torch.nan))
    torch.testing.assert_close(found, (left[active.row] * right[active.index]).sum(1), rtol=1e-4, atol=1e-4)


def test_weighted_sums(active):
    values, table = random(len(active.index), seed=2), random(LATENTS, WIDTH, seed=3)
    found = looped(compiled.sums, ROWS, *active.compact, values, table, out=torch.full((ROWS, WIDTH), torch.nan))
    torch.testing.assert_close(found, active.dense(values) @ table, rtol=1e-4, atol=1e-4)


def test_the_transpose(active):
    starts, index = (each.numpy() for each in active.compact)
    begins, rows, order = compiled.transpose(starts, index, LATENTS)
    expected = active.index.argsort(stable=True)
    assert order.tolist() == expected.tolist()
    assert rows.tolist() == active.row[expected].tolist()
    assert np.diff(begins).tolist() == torch.bincount(active.index, minlength=LATENTS).tolist()


def test_sums_of_latents(active):
    values = random(len(active.index), seed=2)
    found = compiled.by_latent(active.compact[1].numpy(), values.numpy(), LATENTS)
    np.testing.assert_allclose(found, active.dense(values).double().sum(0).numpy(), rtol=1e-6, atol=1e-6)


def test_values_at_pairs(active):
    pre = random(ROWS, LATENTS, seed=2)
    found = looped(compiled.values_at, ROWS, pre, *active.compact, out=torch.empty(len(active.index)))
    assert torch.equal(found, pre[active.row, active.index])


def test_rows_of_a_decoder(monkeypatch):
    """As PyTorch does them; a row of zeros stays one."""
    weights = torch.nn.Parameter(random(LATENTS, WIDTH, seed=0))
    with torch.no_grad():
        weights[4] = 0
    weights.grad = random(LATENTS, WIDTH, seed=1)
    found = []
    for least in (1, 2**62):
        monkeypatch.setattr(compiled, "FROM", least)
        one = torch.nn.Parameter(weights.detach().clone())
        one.grad = weights.grad.clone()
        decoder.renormalise(one)
        decoder.remove_parallel(one)
        found.append((one.detach(), one.grad))
    (ours, grad), (theirs, expected) = found
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)
    assert not ours[4].any()
    torch.testing.assert_close(ours.norm(dim=1)[5:], torch.ones(LATENTS - 5))


def test_threads_share_all_rows():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for rows in (1, 63, 64, 1000):
                edges = compiled.stretches(rows)
                assert (edges[0], edges[-1]) == (0, rows)
                assert (np.diff(edges) > 0).all()
                assert len(edges) - 1 <= threads
    finally:
        torch.set_num_threads(before)


def test_a_loop_is_compiled_where_nothing_can_be_kept(monkeypatch):
    def refusing(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(compiled, "njit", refusing)
    assert compiled.loop()(lambda number: number + 1)(2) == 3
