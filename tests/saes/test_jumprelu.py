"""JumpReLU's straight-through gradients, written out, and the controller that reaches an L0."""

import copy

import pytest
import torch

from pipeline.saes import checkpoint
from pipeline.saes.base import Step
from pipeline.saes.jumprelu import NEAR, RATE, jump
from tests.saes.formulas import JUMPRELU, SHARES, TARGET, VARIANCE

WIDTH = JUMPRELU["bandwidth"]


def test_gradients_of_the_jump_are_the_papers():
    """d f / d theta = -theta / width in the band, d L0 / d theta = -1 / width there, d f / d z = 1 above theta; nothing else."""
    z = torch.tensor([[-0.3, 0.05, 0.35, 0.45, 0.7, 1.2], [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.0, 0.0, 0.4, 0.4, 0.4, 0.4], dtype=torch.float64, requires_grad=True)
    f, active, _ = jump(z, theta, 0.2)
    assert f.tolist() == [[0, 0.05, 0, 0.45, 0.7, 1.2], [0.1, 0.1, 0, 0, 0, 0]]
    assert active.item() == 6
    (7 * f[0].sum() + 11 * f[1].sum() + 3 * active).backward()
    assert z.grad.tolist() == [[0, 7, 0, 7, 7, 7], [11, 11, 0, 0, 0, 0]]
    band = [-(0.0 * 7 + 3) / 0.2, -(0.4 * 7 + 3) / 0.2]
    torch.testing.assert_close(theta.grad.tolist(), [0.0, band[0], band[1], band[1], 0.0, 0.0])


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(("latents", "bias"), SHARES, ids=["many", "few", "none"])
@pytest.mark.parametrize("spec", [JUMPRELU, TARGET], ids=["weight", "target"])
def test_the_gradient_of_thresholds_is_the_papers(build, x, spec, bias, latents, subtract):
    """Latent by latent, row by row: -(theta x (gradient of the error by f) + weight of L0) / width for each pre-activation in the band."""
    sae, _ = build(bias=bias, **spec, latents=latents, subtract_b_dec=subtract)
    sae, x = sae.double(), x.double()
    with torch.no_grad():
        sae.threshold[:4] = 0.1  # the band reaches below 0
    sae.losses(x, x, Step(VARIANCE, sparsity=0.7)).total.backward()
    with torch.no_grad():
        pre = (x - sae.b_dec if subtract else x) @ sae.W_enc + sae.b_enc
        open_ = pre > sae.threshold
        by_f = 2 * ((pre * open_) @ sae.W_dec + sae.b_dec - x) @ sae.W_dec.T / 9 / VARIANCE
        off = open_.sum().item() / 9 / 4 - 1
        weight = 2.0 if spec is JUMPRELU else (2.0 * 4 + 2 * min(max(off, -NEAR), NEAR)) / 4
        expected = torch.zeros(latents, dtype=torch.float64)
        for row in range(9):
            for m in range(latents):
                theta = sae.threshold[m].item()
                if abs(pre[row, m].item() - theta) < WIDTH / 2:
                    expected[m] -= (theta * by_f[row, m].item() + 0.7 * weight / 9) / WIDTH
    torch.testing.assert_close(sae.threshold.grad, expected, rtol=1e-9, atol=1e-12)
    assert expected.count_nonzero() > (0 if bias > -100 else -1)


def test_the_jump_is_saelens_own():
    theirs = pytest.importorskip("sae_lens.saes.jumprelu_sae")
    generator = torch.Generator().manual_seed(0)
    z, theta = torch.randn(50, 7, generator=generator), torch.rand(7, generator=generator)
    by_f = torch.randn(50, 7, generator=generator)

    def gradients(function):
        some = [z.clone().requires_grad_(), theta.clone().requires_grad_()]
        f, active = function(*some)
        (f * by_f).sum().add(3 * active).backward()
        return f, active, *(one.grad for one in some)

    found = gradients(lambda z, theta: jump(z, theta, 0.4)[:2])
    wanted = gradients(lambda z, theta: (theirs.JumpReLU.apply(z, theta, 0.4, False), theirs.Step.apply(z, theta, 0.4, False).sum()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_thresholds_are_kept_from_falling_below_zero_and_can_leave_it(build, x):
    sae, _ = build(**JUMPRELU)
    with torch.no_grad():
        sae.threshold[:10] = -0.5
    sae.losses(x, x, Step(VARIANCE)).total.backward()
    assert sae.threshold.min() == 0
    assert (sae.threshold.grad[:10] < 0).any(), "a step of gradient descent raises them"


@pytest.mark.parametrize(("off", "moved"), [(0.25, 0.25), (-0.25, -0.25), (0.49, 0.49), (0.51, 0.0), (30.0, 0.0), (-0.9, 0.0)])
def test_the_multiplier_moves_by_how_far_l0_is_off_while_it_is_near(build, x, off, moved):
    sae, _ = build(**TARGET)
    rows_and_active = iter([torch.tensor(4.0 * (1 + off) * 9), torch.tensor(9.0)])
    sae.losses(x, x, Step(VARIANCE, summed=lambda _: next(rows_and_active)))
    assert sae.multiplier.item() == pytest.approx(2.0 * 4 + RATE * moved, abs=1e-9)


def test_under_autocast_thresholds_learn_as_in_float32(build):
    """Numbers of bfloat16 near 1 are 0.008 apart: of a band of 0.004 around a threshold between two, there would be no pre-activation."""
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    grads = []
    for autocast in (False, True):
        sae, _ = build(**{**JUMPRELU, "bandwidth": 0.004})
        with torch.no_grad():
            sae.threshold.fill_(1 + 2.0**-8)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            sae.losses(x, x, Step(VARIANCE)).total.backward()
        grads.append(sae.threshold.grad)
    assert grads[0].count_nonzero() > 5
    torch.testing.assert_close(grads[1], grads[0], rtol=0.05, atol=0.05 * grads[0].abs().max().item())


def sparse_sums(rows: int = 6000, width: int = 16, directions: int = 40) -> torch.Tensor:
    """Sums of two of forty directions, on average, scaled so that the mean squared norm is the width."""
    generator = torch.Generator().manual_seed(0)
    each = torch.randn(directions, width, generator=generator)
    some = torch.rand(rows, directions, generator=generator) * (torch.rand(rows, directions, generator=generator) < 2 / directions)
    x = some @ (each / each.norm(dim=1, keepdim=True))
    return x * (width / x.square().sum(1).mean()).sqrt()


@pytest.mark.parametrize("target", [2.0, 6.0])
def test_l0_reaches_the_target_and_thresholds_are_what_moves_it(build, target):
    x = sparse_sums()
    variance = (x - x.mean(0)).square().sum(1).mean().item()
    sae, _ = build(width=16, latents=64, **{**JUMPRELU, "l0": 1e-3, "bandwidth": 0.2, "threshold": 0.05, "target_l0": target})
    sae.initialise(x.mean(0))
    adam = torch.optim.Adam(sae.parameters(), lr=3e-3)
    generator, seen = torch.Generator().manual_seed(1), []
    for step in range(1500):
        adam.param_groups[0]["lr"] = 3e-3 * min(1, (1500 - step) / 500)
        rows = x[torch.randint(len(x), (200,), generator=generator)]
        found = sae.losses(rows, rows, Step(variance, sparsity=min(1.0, step / 75)))
        found.total.backward()
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        seen.append(found.fired_M.sum().item() / 200)
    assert seen[0] > 3 * target
    assert sum(seen[-100:]) / 100 == pytest.approx(target, rel=0.1)
    assert 1 - found.squared_error.item() / 200 / variance > 0.5
    assert (sae.threshold - 0.05).abs().min() > 0.05
    without = copy.deepcopy(sae)
    without.threshold.data.fill_(0.05)
    assert (without.encode(x) != 0).sum() > 2 * (sae.encode(x) != 0).sum()


@pytest.mark.parametrize(("target", "wanted"), [(3, 3), (40, 40), (190, 150), (None, 0.1587 * 300)])
def test_thresholds_begin_where_the_target_is_reached_but_for_what_is_learned(target, wanted):
    """Of rows with variance 1 in all directions; not below 0, where half of the latents are active. Restarted ones begin there too."""
    sae, _ = checkpoint.build({"architecture": "jumprelu", "latents": 300, "target_l0": target}, 20)
    x = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0))
    sae.initialise(torch.zeros(20), x[:256])
    assert (sae.encode(x) != 0).sum().item() / 4000 == pytest.approx(wanted, rel=0.05)
    first = sae.threshold.clone()
    sae.threshold.data.fill_(9.0)
    sae.restart(torch.arange(300), sae.W_enc.norm(dim=0)[0].item())
    torch.testing.assert_close(sae.threshold, first)
    linear, _ = checkpoint.build({"architecture": "jumprelu", "latents": 300, "target_l0": target, "init": "linear"}, 20)
    linear.initialise(torch.zeros(20))
    assert linear.W_enc.norm(dim=0).mean() < 0.7
    assert (linear.encode(x) != 0).sum().item() / 4000 == pytest.approx(wanted, rel=0.25), "as many, but for what biases add"
    given, _ = checkpoint.build({"architecture": "jumprelu", "latents": 300, "target_l0": 3, "threshold": 0.4}, 20)
    given.initialise(torch.zeros(20))
    assert (given.threshold == torch.tensor(0.4)).all(), "what the study says"
