"""Products with few active latents against the dense products, values and gradients, in float64."""

import pytest
import torch

from pipeline.saes import kernels

ROWS, WIDTH, LATENTS = 13, 5, 40


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def patterns() -> dict[str, torch.Tensor]:
    """Masks (B, M), some with rows and latents in which nothing is active."""
    share = torch.rand(ROWS, LATENTS, generator=torch.Generator().manual_seed(0))
    gaps = share < 0.1
    gaps[[0, 5, ROWS - 1]] = False
    gaps[:, [0, 7, LATENTS - 1]] = False
    one = torch.zeros(ROWS, LATENTS, dtype=torch.bool)
    one[3, 4] = True
    return {"few": share < 0.1, "gaps": gaps, "one": one, "none": share > 2, "all": share < 2}


@pytest.mark.parametrize("mask", patterns().values(), ids=patterns().keys())
def test_encoding_at_active_pairs_is_the_dense_product_there(mask):
    given = [random(ROWS, WIDTH, seed=1), random(WIDTH, LATENTS, seed=2), random(LATENTS, seed=3)]
    dense, sparse = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))
    weights = random(ROWS, LATENTS, seed=4)
    pre = dense[0] @ dense[1] + dense[2]
    active = kernels.Active.where(mask)
    values = kernels.encode_at(*sparse, (sparse[0] @ sparse[1] + sparse[2])[mask], active)
    torch.testing.assert_close(values, pre[mask])
    (pre * weights * mask).sum().backward()
    (values * weights[mask]).sum().backward()
    for a, b in zip(sparse, dense, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("mask", patterns().values(), ids=patterns().keys())
def test_decoding_active_pairs_is_the_dense_product(mask):
    values, matrix, weights = random(ROWS, LATENTS, seed=1), random(LATENTS, WIDTH, seed=2), random(ROWS, WIDTH, seed=3)
    f, W = values.clone().requires_grad_(), matrix.clone().requires_grad_()
    expected = (f * mask) @ W
    (expected * weights).sum().backward()
    active = kernels.Active.where(mask)
    few, V = values[mask].clone().requires_grad_(), matrix.clone().requires_grad_()
    found = kernels.decode_at(few, V, active)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(V.grad, W.grad)
    torch.testing.assert_close(few.grad, f.grad[mask])
    torch.testing.assert_close(active.dense(few), values * mask)
    assert torch.equal(active.count(), mask.sum(0))


def test_chosen_pairs_need_not_be_in_order():
    """topk gives them as it finds them."""
    index = torch.stack([torch.randperm(LATENTS, generator=torch.Generator().manual_seed(row))[:4] for row in range(ROWS)])
    active = kernels.Active.chosen(index, LATENTS)
    values, matrix, weights = (
        random(ROWS * 4, seed=1).requires_grad_(),
        random(LATENTS, WIDTH, seed=2).requires_grad_(),
        random(ROWS, WIDTH, seed=3),
    )
    (kernels.decode_at(values, matrix, active) * weights).sum().backward()
    few, whole = values.detach().clone().requires_grad_(), matrix.detach().clone().requires_grad_()
    (torch.zeros(ROWS, LATENTS, dtype=torch.float64).scatter(1, index, few.view(ROWS, 4)) @ whole * weights).sum().backward()
    torch.testing.assert_close(values.grad, few.grad)
    torch.testing.assert_close(matrix.grad, whole.grad)
    assert active.count().sum() == ROWS * 4


@pytest.mark.parametrize("mask", patterns().values(), ids=patterns().keys())
def test_a_number_of_each_latent_reaches_its_pairs_and_its_gradient_comes_back(mask):
    each, weights = random(LATENTS, seed=1).requires_grad_(), random(ROWS, LATENTS, seed=2)
    active = kernels.Active.where(mask)
    found = kernels.at_pairs(each, active)
    (found * weights[mask]).sum().backward()
    assert torch.equal(found, each.expand(ROWS, -1)[mask])
    torch.testing.assert_close(each.grad, (weights * mask).sum(0))


@pytest.mark.parametrize("mask", patterns().values(), ids=patterns().keys())
def test_pairs_of_some_latents_are_the_columns_of_the_mask(mask):
    active, inside = kernels.Active.where(mask).between(3, 17)
    values = random(ROWS, LATENTS, seed=1)
    torch.testing.assert_close(active.dense(values[mask][inside]), (values * mask)[:, 3:17])
    assert torch.equal(active.count(), mask.sum(0)[3:17])


def test_products_give_the_same_bits_each_time():
    index = torch.randint(LATENTS, (ROWS, 4), generator=torch.Generator().manual_seed(0))
    values, matrix = torch.randn(ROWS * 4), torch.randn(LATENTS, WIDTH)
    first, second = (kernels.Active.chosen(index, LATENTS) for _ in range(2))
    assert torch.equal(first.times(values, matrix), second.times(values, matrix))
    assert torch.equal(first.transposed_times(values, matrix[:ROWS]), second.transposed_times(values, matrix[:ROWS]))


def test_they_pay_when_few_latents_are_active():
    assert kernels.pays(10, 100, 1000)
    assert not kernels.pays(90_000, 100, 1000)
