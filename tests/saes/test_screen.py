"""Latents found by a rough product against those of the exact one, in float64; and the bound on how rough it is."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from pipeline.saes import compiled, kernels, latents, product, screen

ROWS, WIDTH, LATENTS, K = 150, 40, 1000, 9
HALVES = pytest.param("bfloat16", marks=pytest.mark.skipif(not product.has_halves(), reason="this processor has no products in bfloat16"))


@pytest.fixture(params=[HALVES, "float32"], autouse=True)
def products(request, monkeypatch) -> str:
    """By either product, and at any size."""
    monkeypatch.setattr(screen, "LEAST", 1)
    monkeypatch.setattr(screen, "_MOST", 1.0)
    monkeypatch.setattr(compiled, "FROM", 1)
    monkeypatch.setattr(kernels, "_TRANSPOSED_FROM", 1)
    if request.param == "float32":
        monkeypatch.setattr(screen, "has_halves", lambda: False)
    return request.param


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_latent(W_MD: Tensor) -> Tensor:
    return W_MD.contiguous().T


def cases() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    x, W, b = random(ROWS, WIDTH, seed=0), random(LATENTS, WIDTH, seed=1) / WIDTH**0.5, random(LATENTS, seed=2) / 4
    norms = torch.logspace(-2, 1, LATENTS)[torch.randperm(LATENTS, generator=torch.Generator().manual_seed(3))].unsqueeze(1)
    heavy = random(ROWS, WIDTH, seed=4).exp().square()
    return {
        "plain": (x, by_latent(W), b),
        "an offset that the bias cancels": (x + 100, by_latent(W), b - 100 * W.sum(1)),
        "norms over three decades": (x, by_latent(W * norms), b),
        "rows of very different length": (x * torch.logspace(-6, 6, ROWS).unsqueeze(1), by_latent(W), torch.zeros(LATENTS)),
        "heavy tails": (heavy, by_latent(W), b),
        "latents not in eights": (x, by_latent(W[:997]), b[:997]),
        "many not positive": (x, by_latent(W), b - 2),
        "none positive": (x, by_latent(W), b - 100),
        "by row": (x, W.T.contiguous(), b),
        "some rows a thousand times as long": (torch.where(torch.arange(ROWS).unsqueeze(1) % 50 == 3, 1000 * x.abs(), x), by_latent(W), b),
    }


CASES = pytest.mark.parametrize("given", cases().values(), ids=cases().keys())


def exact(given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, W_enc, b_enc = (each.double() for each in given)
    return x @ W_enc + b_enc


def rounding(given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """What computing in float32 may change (B, 1)."""
    x, W_enc, b_enc = (each.double() for each in given)
    return 1e-6 * (x.norm(dim=1, keepdim=True) * W_enc.norm(dim=0).max() + b_enc.abs().max())


def assert_close(found_BM: Tensor, expected_BM: Tensor, off_B1: Tensor) -> None:
    assert ((found_BM - expected_BM).abs() <= off_B1).all()


def dense(f: latents.Latents) -> Tensor:
    return (f.values if f.active is None else f.active.dense(f.values)).detach().double()


@CASES
def test_numbers_are_off_by_no_more_than_is_said(given):
    rough = screen.rough(*given)
    number = (rough.keys_BM.int() << 16).view(torch.float32).double()
    off = (number - exact(given)).abs()
    assert (off <= rough.share * number.abs() + rough.off_B.double().unsqueeze(1) + rounding(given)).all()
    assert (off > 0.3 * (rough.share * number.abs() + rough.off_B.double().unsqueeze(1))).any(), "the bound is not loose"


@CASES
@pytest.mark.parametrize("signed", [False, True])
def test_the_k_largest_of_each_row(given, signed):
    pre, found = exact(given), dense(latents.largest(*given, K, signed))
    chosen = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(K).indices, True) & (signed | (pre > 0))
    edge = torch.where(chosen, pre, torch.inf).amin(1, keepdim=True)
    near = (pre - edge).abs() <= rounding(given)  # float32 cannot tell which is the larger
    assert (near | ((found != 0) == chosen)).all()
    assert_close(found, pre * (found != 0), rounding(given))
    assert ((found != 0).sum(1) == chosen.sum(1)).all() or not signed


@CASES
def test_the_largest_of_a_batch(given):
    pre = exact(given)
    found, smallest = latents.largest_of_batch(*given, K * ROWS)
    edge = pre.flatten().topk(K * ROWS).values.amin().clamp_min(0)
    expected = pre > 0 if edge == 0 else pre >= edge
    mask = dense(found) > 0
    assert (((pre - edge).abs() <= rounding(given)) | (mask == expected)).all()
    assert_close(dense(found), pre * mask, rounding(given))
    assert abs(smallest - (pre[expected].min() if expected.any() else 0.0)) <= rounding(given).max()


@CASES
@pytest.mark.parametrize("floor", [None, 0.5, -0.5])
def test_what_is_above_a_floor(given, floor):
    pre, floor_M = exact(given), None if floor is None else floor + torch.rand(len(given[2]), generator=torch.Generator().manual_seed(5))
    expected = pre > (0 if floor_M is None else floor_M.double())
    f, _ = latents.unrectified(*given, floor_M)
    if f.active is None:  # under a floor dense values are left as they are
        mask = dense(f) > (0 if floor_M is None else floor_M.double())
    else:
        mask = f.active.dense(torch.ones(len(f.active.index))) > 0
    off = rounding(given) + 1e-6 * abs(floor or 0)
    near = (pre - (0 if floor_M is None else floor_M)).abs() <= off
    assert (near | (mask == expected)).all()
    assert_close(dense(f), pre if f.active is None and floor_M is not None else pre * mask, off)


def test_it_is_the_way_that_is_tested(products):
    """None of the cases above went by the dense product without a reason."""
    left = {name for name, given in cases().items() if screen.largest(*given, K, False) is None}
    far = {"rows of very different length"} if products == "bfloat16" else set()  # beside the middle, the shortest are nothing
    assert left == far
    signed = {name for name, given in cases().items() if screen.largest(*given, K, True) is None}
    assert signed == far | {"many not positive", "none positive"}, "of a row with few positive ones the largest are not known"
    assert all(screen.above(*given, None, LATENTS) is not None for given in cases().values())


@pytest.mark.skipif(not product.has_halves(), reason="this processor has no products in bfloat16")
@pytest.mark.parametrize("least", [1, 2**62], ids=["loops", "PyTorch"])
def test_under_autocast_latents_are_those_of_float32(products, monkeypatch, least):
    if products == "float32":
        pytest.skip("products under autocast are in bfloat16")
    monkeypatch.setattr(compiled, "FROM", least)
    given, found = cases()["plain"], []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            f, (positive, _) = latents.largest(*given, K), latents.unrectified(*given)
            found.append([f.active.index, f.values, positive.active.index, positive.values])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_bfloat16_does_not_decide():
    """1 and 1 + 2^-10 are one number in bfloat16."""
    W_enc = torch.zeros(1, 512)
    W_enc[0, 100:106] = 1 + 2.0**-10 * torch.arange(6)
    active, values = screen.largest(torch.ones(1, 1), W_enc, torch.zeros(512), 2, False)
    assert active.index.tolist() == [104, 105]
    assert values.tolist() == [1 + 4 * 2.0**-10, 1 + 5 * 2.0**-10]


def test_of_equal_values_the_first_are_chosen():
    W_enc = torch.zeros(1, 512)
    W_enc[0, [3, 50, 60, 70]] = 1.0
    active, _ = screen.largest(torch.ones(2, 1), W_enc, torch.zeros(512), 2, False)
    assert active.index.tolist() == [3, 50, 3, 50]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", ["x", "W_enc", "b_enc"])
def test_what_is_not_finite_is_left_to_the_exact_product(wrong, which):
    x, W_enc, b_enc = (each.clone() for each in cases()["plain"])
    {"x": x[3], "W_enc": W_enc[:, 7], "b_enc": b_enc[5:6]}[which].fill_(wrong)
    assert screen.largest(x, W_enc, b_enc, K, False) is None
    f = latents.largest(x, W_enc, b_enc, K)
    pre = x @ W_enc + b_enc
    expected = pre.topk(K).indices.sort(1).values
    assert torch.equal(f.active.index.view(ROWS, K).long().sort(1).values, expected)


def test_numbers_whose_squares_are_none_are_left_to_the_exact_product(products):
    x, W_enc, _ = cases()["plain"]
    for given in ((x * 1e-22, W_enc, torch.zeros(LATENTS)), (x, W_enc * 1e-22, torch.zeros(LATENTS))):
        assert (screen.largest(*given, K, False) is None) == (products == "bfloat16")
        found = latents.largest(*given, K).dense()
        assert ((found != 0).sum(1) == K).all()


def test_all_the_same_is_left_to_the_exact_product():
    x, W_enc, b_enc = torch.zeros(ROWS, WIDTH), random(WIDTH, LATENTS, seed=1), torch.ones(LATENTS)
    assert screen.largest(x, W_enc, b_enc, K, False) is None
    f = latents.largest(x, W_enc, b_enc, K)
    assert f.fired().sum() == ROWS * K


@pytest.mark.parametrize("signed", [False, True])
def test_gradients_are_those_of_the_dense_formula(signed):
    x, W_enc, b_enc = (each.clone().requires_grad_() for each in cases()["plain"])
    W_dec, target = random(LATENTS, WIDTH, seed=7).requires_grad_(), random(ROWS, WIDTH, seed=8)
    f = latents.largest(x, W_enc, b_enc, K, signed)
    (f.decode(W_dec) - target).square().sum().backward()
    x64, W64, b64, D64 = (each.detach().double().requires_grad_() for each in (x, W_enc, b_enc, W_dec))
    pre = x64 @ W64 + b64
    kept = torch.zeros_like(pre).scatter(1, pre.topk(K).indices, 1.0)
    ((pre if signed else pre.relu()) * kept @ D64 - target).square().sum().backward()
    for ours, theirs in ((x, x64), (W_enc, W64), (b_enc, b64), (W_dec, D64)):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-3)


THREADS = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from pipeline.saes import compiled, screen
if sys.argv[2] == "float32":
    screen.has_halves = lambda: False
generator = torch.Generator().manual_seed(0)
x, W, b = (torch.randn(shape, generator=generator) for shape in ((2048, 64), (1024, 64), (1024,)))
active, values = screen.largest(x, W.T, b, 8, False)
assert torch.get_num_threads() == int(sys.argv[1]), "the setting stands"
pre = x @ W.T + b
assert torch.equal(active.index.view(2048, 8).long(), pre.topk(8).indices.sort(1).values)
above, over = screen.above(x, W.T, b - 20, None, 20.0)
found = [active.index, active.starts, values, above.index, above.starts, over, active.times(values, W), active.inner(x, W)]
torch.save(found, sys.argv[3])
"""


def test_the_first_loop_of_a_process_and_the_number_of_threads(tmp_path, products):
    """numba, when it starts its threads, sets the number of PyTorch's. The bits do not depend on it."""
    found = []
    for threads in (1, 2):
        given = [str(threads), products, str(tmp_path / f"{threads}.pt")]
        subprocess.run([sys.executable, "-c", THREADS, *given], check=True, timeout=300)
        found.append(torch.load(given[-1]))
    assert len(found[0][3]) > 1000
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
