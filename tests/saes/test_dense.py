"""Compiled loops over dense latents against the formulas they replace, values and gradients."""

import pytest
import torch
from torch import Tensor

from pipeline.saes import compiled, dense, latents
from pipeline.saes.base import Step
from pipeline.saes.jumprelu import jump

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


def leaves(*given: Tensor) -> list[Tensor]:
    return [each.clone().requires_grad_() for each in given]


def test_the_jump_and_its_gradients(monkeypatch):
    z, theta, weights = random(ROWS, LATENTS, seed=0), random(LATENTS, seed=1).abs(), random(ROWS, LATENTS, seed=2)
    bias = random(LATENTS, seed=3)
    bias[:5], theta[:5] = 0, z[0, :5].abs()  # not larger than the threshold: not active

    def computed() -> list[Tensor]:
        given = leaves(z, bias, theta)
        f, active, _ = jump(given[0], given[2], 0.5, given[1])
        ((f * weights).sum() + 3 * active).backward()
        return [f.detach(), active.detach(), *(each.grad for each in given)]

    assert_same(both(monkeypatch, computed))


@pytest.mark.parametrize("how", ["one for all", "one each", "none"])
def test_relu_and_its_gradients(monkeypatch, how):
    """Also where the gradient of the sums is one number, spread without being copied."""
    pre, bias, weights, each = (
        random(ROWS, LATENTS, seed=0),
        random(LATENTS, seed=1),
        random(ROWS, LATENTS, seed=2),
        random(LATENTS, seed=3),
    )

    def computed() -> list[Tensor]:
        given = leaves(pre, bias)
        f = latents.positive(given[0] * 1, given[1])
        of_sums = {"one for all": 3 * f.total(), "one each": (f.sums() * each).sum(), "none": 0}[how]
        ((f.values * weights).sum() + of_sums).backward()
        return [f.values.detach(), f.sums().detach(), f.fired(), *(each.grad for each in given)]

    assert_same(both(monkeypatch, computed))


def test_what_is_no_number_stays_none(monkeypatch):
    """So that the loss tells it."""
    z, bias = random(ROWS, LATENTS, seed=0), torch.zeros(LATENTS)
    z[3, 5] = torch.nan

    def computed() -> list[Tensor]:
        return [jump(z.clone(), torch.full((LATENTS,), 0.5), 0.1, bias)[0], latents.positive(z.clone(), bias).values]

    f, sums, counts = torch.empty_like(z), torch.empty(LATENTS), torch.empty(LATENTS, dtype=torch.int32)
    compiled.parallel(dense.gated, LATENTS, z.clone(), bias, torch.ones(LATENTS), bias, f, counts, sums)
    ours, plain = both(monkeypatch, computed)
    for found in (*ours, *plain, f):
        assert found.isnan().nonzero().tolist() == [[3, 5]]


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
