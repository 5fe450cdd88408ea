"""What TopK has beyond its formula, which test_architectures.py compares: selection in bfloat16."""

import pytest
import torch

from pipeline.saes.base import Step

WIDTH, LATENTS = 12, 1024
KINDS = [{}, {"signed": True}, {"out": 5, "skip": True}]
DEAD = torch.arange(LATENTS) % 7 == 0


@pytest.mark.parametrize("spec", KINDS, ids=["relu", "signed", "skip-transcoder"])
@pytest.mark.parametrize("k", [None, 9])
def test_selection_in_bfloat16_gives_the_loss_and_gradients_of_exact_selection(build, spec, k):
    """Where it selects the same latents, as it does here."""
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    found = []
    for selection in ("exact", "bfloat16"):
        sae, _ = build(WIDTH, architecture="topk", latents=LATENTS, k=6, selection=selection, **spec)
        y = x[:, : spec["out"]] if "out" in spec else x
        losses = sae.losses(x, y, Step(3.0, k=k, dead_M=DEAD))
        losses.total.backward()
        found.append((losses, sae))
    (exact, one), (rough, other) = found
    assert torch.equal(exact.fired_M, rough.fired_M)
    assert exact.fired_M.sum() == 20 * (k or 6)
    assert exact.parts.keys() == rough.parts.keys() == {"error", "auxk"}
    for name, part in exact.parts.items():
        torch.testing.assert_close(rough.parts[name], part, rtol=1e-5, atol=1e-6)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-4)


def test_fewer_latents_fire_when_few_are_positive_also_where_selected_in_bfloat16(build):
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    sae, _ = build(WIDTH, architecture="topk", latents=LATENTS, k=6, selection="bfloat16", bias=-14.0)
    with torch.no_grad():
        expected = (sae.pre(sae.centred(x)) > 0).sum(1).clamp_max(6).sum()
    fired = sae.losses(x, x, Step(1.0)).fired_M.sum()
    assert fired == expected
    assert 0 < fired < 20 * 6
