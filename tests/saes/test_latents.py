"""Latents are the same whether their products are dense or sparse, values and gradients, in float64."""

import pytest
import torch

from pipeline.saes import kernels, latents

ROWS, WIDTH, LATENTS = 9, 6, 48


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights() -> list[torch.Tensor]:
    """x, W_enc, b_enc, W_dec and a number of each latent."""
    shapes = [(ROWS, WIDTH), (WIDTH, LATENTS), (LATENTS,), (LATENTS, WIDTH), (LATENTS,)]
    return [random(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]


@pytest.fixture(params=["sparse", "dense"])
def products(request, monkeypatch):
    monkeypatch.setattr(kernels, "SPARSE_BELOW", 2.0 if request.param == "sparse" else 0.0)
    return request.param


def masks() -> dict[str, torch.Tensor]:
    share = torch.rand(ROWS, LATENTS, generator=torch.Generator().manual_seed(5))
    empty_rows = share < 0.2
    empty_rows[[0, 4]] = False
    return {"some": share < 0.2, "empty rows": empty_rows, "none": share > 2, "all": share < 2}


@pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())
def test_a_formula_has_the_values_and_gradients_of_its_dense_form(products, mask):
    ours, plain = weights(), weights()
    x, W_enc, b_enc, W_dec, scale = ours
    f = latents.at(kernels.Active.where(mask), x, W_enc, b_enc, x @ W_enc + b_enc)
    assert (f.active is not None) == (products == "sparse")
    f = f.replaced((f.values * f.spread(scale)).relu())
    found = f.decode(W_dec)
    part = f.between(5, 30).decode(W_dec[5:30])
    sums = f.sums()
    torch.testing.assert_close(f.total(), sums.sum())
    target = random(ROWS, WIDTH, seed=9)
    ((found - target).square().sum() + (part * target).sum() + (sums * scale).sum()).backward()

    x, W_enc, b_enc, W_dec, scale = plain
    f_BM = ((x @ W_enc + b_enc) * scale).relu() * mask
    expected, expected_part = f_BM @ W_dec, f_BM[:, 5:30] @ W_dec[5:30]
    ((expected - target).square().sum() + (expected_part * target).sum() + (f_BM.sum(0) * scale).sum()).backward()
    torch.testing.assert_close(sums, f_BM.sum(0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(part, expected_part)
    assert torch.equal(f.fired(), (f_BM != 0).sum(0))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_chosen_latents_are_those_of_the_mask(products):
    x, W_enc, b_enc, W_dec, _ = weights()
    pre = x @ W_enc + b_enc
    index = pre.topk(4).indices
    mask = torch.zeros_like(pre, dtype=torch.bool).scatter(1, index, True)
    found = latents.largest(x, W_enc, b_enc, 4, signed=True)
    assert (found.active is not None) == (products == "sparse")
    torch.testing.assert_close(found.decode(W_dec), (pre * mask) @ W_dec)
    torch.testing.assert_close(latents.at(kernels.Active.where(mask), x, W_enc, b_enc, pre).decode(W_dec), (pre * mask) @ W_dec)


def test_a_value_on_the_support_that_is_zero_has_not_fired(products):
    x, W_enc, b_enc, _, _ = weights()
    mask = torch.zeros(ROWS, LATENTS, dtype=torch.bool)
    mask[2, 3] = mask[4, 3] = mask[4, 7] = True
    pre = torch.ones(ROWS, LATENTS, dtype=torch.float64)
    pre[4, 3] = 0
    fired = latents.at(kernels.Active.where(mask), x, W_enc, b_enc, pre).fired()
    assert {number: int(count) for number, count in enumerate(fired) if count} == {3: 1, 7: 1}
