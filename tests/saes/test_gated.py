"""What is particular to the gated SAE: a gate that learns, through a decoder that is held fixed."""

import warnings

import pytest
import torch

from pipeline.saes.base import Step
from tests.saes.formulas import GATED, SHARES, VARIANCE


@pytest.mark.parametrize(("latents", "bias"), SHARES[:2], ids=["many", "few"])
def test_the_gates_error_moves_the_gate_and_not_the_decoder(build, x, latents, bias):
    sae, _ = build(**GATED, latents=latents, bias=bias)
    found = sae.losses(x, x, Step(VARIANCE))
    given = dict(sae.named_parameters())
    grads = dict(zip(given, torch.autograd.grad(found.parts["gate_error"], given.values(), allow_unused=True), strict=True))
    assert grads["W_dec"] is None or not grads["W_dec"].any()
    assert all(grads[name] is None or not grads[name].any() for name in ("b_mag", "r_mag"))
    assert grads["W_enc"].any()
    assert grads["b_gate"].any()


def test_the_decoders_bias_learns_from_the_gates_error_through_the_encoder_alone(build, x):
    """It is subtracted from the input; where it is not, it has no gradient."""
    sae, _ = build(**GATED, subtract_b_dec=False)
    found = sae.losses(x, x, Step(VARIANCE))
    (grad,) = torch.autograd.grad(found.parts["gate_error"], sae.b_dec, allow_unused=True)
    assert grad is None or not grad.any()


def test_the_gate_has_no_gradient_by_the_error_itself(build, x):
    sae, _ = build(**GATED)
    grads = torch.autograd.grad(sae.losses(x, x, Step(VARIANCE)).parts["error"], [sae.b_gate, sae.b_mag], allow_unused=True)
    torch.testing.assert_close(grads[0], torch.zeros(20), atol=1e-3, rtol=0)
    assert grads[1].abs().max() > 1


def test_a_penalty_closes_gates_and_without_one_they_stay_open(build, x):
    """A gate without a gradient, as in some code, would stay where it began."""
    active = {}
    for l1 in (0.0, 3.0):
        sae, _ = build(**{**GATED, "l1": l1})
        sae.initialise(x.mean(0))
        adam = torch.optim.Adam(sae.parameters(), lr=0.01)
        for _ in range(200):
            sae.losses(x, x, Step(VARIANCE)).total.backward()
            adam.step()
            adam.zero_grad()
            with torch.no_grad():
                sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        active[l1] = (sae.encode(x) != 0).sum().item() / 9
    assert active[3.0] < 0.5 * active[0.0]


def test_the_loss_is_saelens_own(build, x):
    """With a decoder of norm 1, and but for what it is divided by. (Its gradient is not: SAELens' decoder learns from the gate's error.)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gated = pytest.importorskip("sae_lens.saes.gated_sae")
        from sae_lens.saes.sae import TrainStepInput
    sae, _ = build(**GATED)
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    other = gated.GatedTrainingSAE(gated.GatedTrainingSAEConfig(d_in=6, d_sae=20))
    other.load_state_dict(dict(sae.named_parameters()))
    wanted = other.training_forward_pass(TrainStepInput(x, {"l1": 0.3 * VARIANCE**0.5}, None, 0, False))
    found = sae.losses(x, x, Step(VARIANCE))
    assert found.total.item() * VARIANCE == pytest.approx(wanted.loss.item(), rel=1e-5)
    assert torch.equal(found.fired_M, (wanted.feature_acts != 0).sum(0))
