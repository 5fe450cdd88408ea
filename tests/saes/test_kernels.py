"""Products with few active latents against the dense products, values and gradients, in float64."""

import pytest
import torch

from pipeline.saes import compiled, kernels, latents

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
@pytest.mark.parametrize("kind", ["in eights", "odd", "not in one piece"])
def test_places_are_where_a_mask_is_true(mask, kind):
    mask = {"in eights": mask, "odd": mask[:, 1:].contiguous(), "not in one piece": mask[:, :32]}[kind]
    row, column = kernels.places(mask)
    assert torch.equal(torch.stack([row, column], 1), mask.nonzero())
    assert row.is_contiguous()
    assert column.is_contiguous()


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


@pytest.mark.parametrize("least", [1, 2**62], ids=["loops", "PyTorch"])
@pytest.mark.parametrize("mask", patterns().values(), ids=patterns().keys())
@pytest.mark.parametrize("count", [1, 2])
def test_squared_errors_of_some_values_of_each_pair(mask, count, least, monkeypatch):
    """The decoder, its bias and what is wanted learn from the first."""
    monkeypatch.setattr(compiled, "FROM", least)
    monkeypatch.setattr(kernels, "_TILES_PAY", 2**30)
    active, found = kernels.Active.where(mask), []
    given = [random(LATENTS, WIDTH, seed=1), random(WIDTH, seed=2), random(ROWS, WIDTH, seed=3)]
    given += [random(int(mask.sum()), seed=seed) for seed in (4, 5)[:count]]

    def plain(W, b, wanted, active, *values):
        errors = [active.dense(values[0]) @ W + b - wanted]
        errors += [active.dense(other) @ W.detach() + b.detach() - wanted.detach() for other in values[1:]]
        return torch.stack([error.square().sum() for error in errors]), errors[0]

    def ours(W, b, wanted, active, *values):
        f, *others = (latents.Latents(each, active, torch.empty(0)) for each in values)
        assert (kernels.errors_at(W, b, wanted, active, *values) is None) == (least > 1 or not mask.any())
        return f.errors(W, b, wanted, *others)

    for errors, kind in ((ours, torch.float32), (plain, torch.float64)):
        W, b, wanted, *values = (each.to(kind, copy=True).requires_grad_() for each in given)
        squared_C, error = errors(W, b, wanted, active, *values)
        (squared_C * torch.tensor([0.7, 0.3][:count])).sum().backward()
        found.append([squared_C, error.detach(), *(each.grad for each in (W, b, wanted, *values))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


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


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_products_and_gradients_give_the_same_bits_each_time(two_threads):
    """At a size at which threads share the work; some latents are active in very many rows."""
    rows, latents, width, k = 2048, 4096, 64, 16
    generator = torch.Generator().manual_seed(0)
    index = (torch.rand(rows, k, generator=generator) ** 3 * latents).long()
    index[:, 0] = 7
    x, W_enc, W_dec, b_enc, values, weights = (
        torch.randn(*shape, generator=generator)
        for shape in ((rows, width), (width, latents), (latents, width), (latents,), (rows * k,), (rows, width))
    )

    def computed() -> list[torch.Tensor]:
        active = kernels.Active.chosen(index, latents)
        given = [tensor.clone().requires_grad_() for tensor in (x, W_enc, b_enc, W_dec)]
        f = kernels.encode_at(*given[:3], values, active)
        found = kernels.decode_at(f * kernels.at_pairs(given[2], active), given[3], active)
        found.backward(weights)
        direct = [active.times(values, W_dec), active.transposed_times(values, x), active.inner(x, W_dec), active.sums(values)]
        return [found.detach(), *(tensor.grad for tensor in given), *direct]

    first = computed()
    assert all(tensor.isfinite().all() and tensor.any() for tensor in first)
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(first, computed(), strict=True))


def test_they_pay_when_few_latents_are_active():
    assert kernels.pays(10, 100, 1000)
    assert not kernels.pays(90_000, 100, 1000)
