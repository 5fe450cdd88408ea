"""What TopK has beyond its formula, which test_architectures.py compares."""

import torch

from pipeline.saes.base import Step

WIDTH, LATENTS = 12, 1024


def test_fewer_latents_fire_when_few_are_positive(build):
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    sae, _ = build(WIDTH, architecture="topk", latents=LATENTS, k=6, bias=-14.0)
    with torch.no_grad():
        expected = (sae.pre(sae.centred(x)) > 0).sum(1).clamp_max(6).sum()
    fired = sae.losses(x, x, Step(1.0)).fired_M.sum()
    assert fired == expected
    assert 0 < fired < 20 * 6
