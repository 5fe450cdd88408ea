"""The dense product against PyTorch's own, values and gradients."""

import pytest
import torch

from pipeline.saes import product as products
from pipeline.saes.product import masked, product


def given(dtype: torch.dtype, transposed: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((7, 5), (11, 5) if transposed else (5, 11), (11,)))
    return [a.requires_grad_(), (b.T if transposed else b).requires_grad_(), bias.requires_grad_()]


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_product_and_its_gradients_are_pytorchs(dtype, transposed):
    ours, theirs = given(dtype, transposed), given(dtype, transposed)
    weights = torch.randn(7, 11, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found, expected = product(*ours), theirs[0] @ theirs[1] + theirs[2]
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert ours[1].grad.stride() == ours[1].stride()


def test_a_product_under_a_mask_has_the_value_given_and_the_gradients_of_the_masked_product():
    ours, theirs = given(torch.float64, True), given(torch.float64, True)
    mask = torch.rand(7, 11, generator=torch.Generator().manual_seed(2)) < 0.5
    weights = torch.randn(7, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (theirs[0] @ theirs[1] + theirs[2]) * mask
    found = masked(*ours, product(*ours).detach(), mask.double() - 0.5)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("of", ["PyTorch", "oneDNN"])
@pytest.mark.parametrize("how", ["one for all", "one each"])
def test_the_product_with_sums_has_the_gradients_of_both(of, how, monkeypatch):
    """Also where the gradient of the sums is one number, spread without being copied."""
    if of == "oneDNN":
        monkeypatch.setattr(products, "_ONEDNN", [torch.float32])
    weights, each = (
        torch.randn(7, 5, generator=torch.Generator().manual_seed(1)),
        torch.randn(11, generator=torch.Generator().manual_seed(2)),
    )
    found = []
    for formula in (products.product_and_sums, lambda a, b: (a @ b, a.sum(0))):
        a, b, _ = given(torch.float32, False)
        a, b = torch.randn(7, 11, generator=torch.Generator().manual_seed(3)).requires_grad_(), b.detach().T.contiguous().requires_grad_()
        product_BE, sums_M = formula(a, b)
        ((product_BE * weights).sum() + (3 * sums_M.sum() if how == "one for all" else (sums_M * each).sum())).backward()
        found.append([product_BE, sums_M, a.grad, b.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_no_rows_give_no_rows():
    assert product(torch.zeros(0, 5), torch.zeros(5, 3), torch.zeros(3)).shape == (0, 3)


def test_under_autocast_products_round_and_results_stay_in_float32():
    a, b, bias = given(torch.float32, True)
    with torch.autocast("cpu", torch.bfloat16):
        found = product(a, b, bias)
    found.sum().backward()
    assert found.dtype == b.grad.dtype == torch.float32
    assert torch.equal(found, (torch.addmm(bias.bfloat16(), a.bfloat16(), b.bfloat16())).float())
    assert torch.equal(b.grad, (torch.ones(11, 7, dtype=torch.bfloat16) @ a.bfloat16()).float().T)
