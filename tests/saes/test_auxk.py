"""AuxK, by which dead latents learn."""

import pytest
import torch

from pipeline.saes import auxk, kernels
from pipeline.saes.base import Step

DEAD = torch.tensor([False, True, True])


@pytest.fixture
def by_hand(build):
    """Two rows (1, 2) and (1, -2). Latent 0 gives (1, 0) of both; what is left is (0, 2) and (0, -2), of variance 4. Latents 1 and 2 are
    dead; 1 has the larger pre-activation (2) in the first row, 2 (2 as well) in the second; they give (0, 1) and (0, -2)."""
    sae, _ = build(2, architecture="topk", latents=3, k=1, auxk=1.0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[10.0, 0, 0], [0, 1, -1]]))
        sae.W_dec.copy_(torch.tensor([[0.1, 0], [0, 0.5], [0, -1]]))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae, torch.tensor([[1.0, 2], [1, -2]])


@pytest.mark.parametrize("sparse_below", [0.0, 2.0])
def test_it_is_what_the_paper_says_by_hand(by_hand, monkeypatch, sparse_below):
    monkeypatch.setattr(kernels, "SPARSE_BELOW", sparse_below)
    sae, x = by_hand
    error = torch.tensor([[0.0, -2], [0, 2]])
    loss = auxk.part(sae, sae.centred(x), error, Step(1.0, dead_M=DEAD))["auxk"]
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor((1 + 0) / 2 / 4.0))
    torch.testing.assert_close(sae.W_dec.grad, torch.tensor([[0, 0], [0, -0.5], [0, 0]]))
    torch.testing.assert_close(sae.W_enc.grad, torch.tensor([[0, -0.125, 0], [0, -0.25, 0]]))
    torch.testing.assert_close(sae.b_enc.grad, torch.tensor([0, -0.125, 0]))


def test_it_moves_neither_live_latents_nor_b_dec(build, x):
    sae, _ = build(architecture="topk", latents=300, k=4)
    dead = torch.zeros(300, dtype=torch.bool)
    dead[100:220] = True
    centred = sae.centred(x)
    loss = auxk.part(sae, centred, torch.randn(x.shape), Step(1.0, dead_M=dead))["auxk"]
    loss.backward()
    assert sae.b_dec.grad is None
    for grad in (sae.W_enc.grad.T, sae.W_dec.grad, sae.b_enc.grad):
        assert grad[dead].abs().sum() > 0
        assert not grad[~dead].any()


def test_its_weight_depends_on_no_scale(build, x):
    sae, _ = build(architecture="topk", latents=40, k=4)
    dead = torch.arange(40) < 15
    error = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    one = auxk.part(sae, sae.centred(x), error, Step(1.0, dead_M=dead))["auxk"]
    with torch.no_grad():
        sae.W_dec *= 10
    ten = auxk.part(sae, sae.centred(x), 10 * error, Step(1.0, dead_M=dead))["auxk"]
    torch.testing.assert_close(ten, one)


def test_it_is_zero_where_nothing_is_left_and_no_number_where_the_error_is_none(build, x):
    sae, _ = build(architecture="topk", latents=40, k=4)
    dead = torch.arange(40) < 15
    nothing = auxk.part(sae, sae.centred(x), torch.zeros_like(x), Step(1.0, dead_M=dead))["auxk"]
    nothing.backward()
    assert nothing == 0
    assert not sae.W_dec.grad.any()
    for wrong in (torch.nan, torch.inf):
        assert auxk.part(sae, sae.centred(x), torch.full_like(x, wrong), Step(1.0, dead_M=dead))["auxk"].isnan()


@pytest.mark.parametrize("dead", [None, torch.zeros(40, dtype=torch.bool)])
def test_it_is_nothing_while_no_latent_is_dead(build, x, dead):
    sae, _ = build(architecture="topk", latents=40, k=4)
    assert auxk.part(sae, x, x, Step(1.0, dead_M=dead)) == {}
