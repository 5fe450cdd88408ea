"""The dense product against PyTorch's own, values and gradients."""

import pytest
import torch

from pipeline.saes.product import product, valued


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


def test_a_product_whose_value_is_given_has_it_and_the_gradients_of_the_product():
    ours, theirs = given(torch.float64, True), given(torch.float64, True)
    weights = torch.randn(7, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value = torch.ones(7, 11, dtype=torch.float64)
    found = valued(*ours, value)
    assert torch.equal(found, value)
    (found * weights).sum().backward()
    ((theirs[0] @ theirs[1] + theirs[2]) * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


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
