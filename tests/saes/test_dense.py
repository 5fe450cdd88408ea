"""Compiled loops over dense latents against the formulas they replace, values and gradients."""

import pytest
import torch
from torch import Tensor

from pipeline.saes import compiled, dense
from pipeline.saes.base import Step
from pipeline.saes.jumprelu import jump
from pipeline.saes.product import kept, masked, product

ROWS, WIDTH, LATENTS = 201, 12, 300
LOOPS = [1, 2**62]
"""From how many numbers loops are taken: always, never."""


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(monkeypatch, computed) -> tuple[list[Tensor], list[Tensor]]:
    """What is computed with loops and without."""
    found, ways = [], []
    for least in LOOPS:
        monkeypatch.setattr(compiled, "FROM", least)
        used = []
        monkeypatch.setattr(
            compiled, "parallel", lambda loop, *given, used=used, run=compiled.parallel: (used.append(loop), run(loop, *given))
        )
        found.append(computed())
        monkeypatch.undo()
        ways.append(len(used))
    assert ways[0] > 0 == ways[1]
    return found[0], found[1]


def assert_same(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    for one, other in zip(*pair, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_the_jump_and_its_gradients(monkeypatch):
    z, theta, weights = random(ROWS, LATENTS, seed=0), random(LATENTS, seed=1).abs(), random(ROWS, LATENTS, seed=2)
    theta[:5] = z[0, :5].abs()  # not larger than the threshold: not active

    def computed() -> list[Tensor]:
        given = [z.clone().requires_grad_(), theta.clone().requires_grad_()]
        f, active = jump(*given, 0.5)
        ((f * weights).sum() + 3 * active).backward()
        return [f.detach(), active.detach(), *(each.grad for each in given)]

    assert_same(both(monkeypatch, computed))


def test_what_is_no_number_stays_none(monkeypatch):
    """So that the loss tells it."""
    z, over = random(ROWS, LATENTS, seed=0), random(ROWS, LATENTS, seed=1)
    z[3, 5] = over[7, 9] = torch.nan

    def computed() -> list[Tensor]:
        gate = torch.nn.Parameter(z.clone())
        return [jump(gate, torch.full((LATENTS,), 0.5), 0.1)[0].detach()]

    for f in both(monkeypatch, computed):
        assert f[0].isnan().nonzero().tolist() == [[3, 5]]
    out, sums = torch.empty_like(z), torch.empty(LATENTS)
    compiled.parallel(dense.kept, LATENTS, torch.ones_like(z), over, out, sums)
    assert torch.equal(out, kept(torch.ones_like(z), over))


def test_masked_products(monkeypatch):
    given, weights = [random(ROWS, WIDTH, seed=0), random(LATENTS, WIDTH, seed=1).T, random(LATENTS, seed=2)], random(ROWS, LATENTS, seed=3)
    over = random(ROWS, LATENTS, seed=4)

    def computed() -> list[Tensor]:
        ours = [each.clone().requires_grad_() for each in given]
        (masked(*ours, product(*given), over) * weights).sum().backward()
        return [each.grad for each in ours]

    assert_same(both(monkeypatch, computed))


@pytest.mark.parametrize(
    "spec", [{"architecture": "gated"}, {"architecture": "jumprelu", "bandwidth": 0.5}, {"architecture": "relu"}], ids=str
)
def test_losses_of_dense_latents(build, monkeypatch, spec):
    x = random(ROWS, WIDTH, seed=5)

    def computed() -> list[Tensor]:
        sae, _ = build(WIDTH, **spec | {"latents": LATENTS})
        found = sae.losses(x, x, Step(3.0))
        found.total.backward()
        return [found.total.detach(), found.fired_M, *(parameter.grad for parameter in sae.parameters())]

    (ours, plain) = both(monkeypatch, computed)
    assert ours[1].sum() > 0.1 * ROWS * LATENTS, "dense"
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
