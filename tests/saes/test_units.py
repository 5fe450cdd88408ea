"""Units of training, folded into the weights: the folded SAE makes of raw activations what the other made of those in its units."""

import copy

import pytest
import torch

from pipeline.saes.base import Step
from pipeline.saes.units import Units, plain
from tests.saes.formulas import ALL, SHIFTED, VARIANCE, names


def scaled(width: int, scale: float, seed: int) -> Units:
    return Units(torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), scale)


def whitened(width: int, seed: int) -> Units:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(width, width, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(width, dtype=torch.float64)
    return Units(torch.randn(width, generator=generator, dtype=torch.float64), 1.0, matrix, matrix.inverse())


UNITS = {
    "plain": lambda width, seed: Units(plain(width).shift.double()),
    "shift": lambda width, seed: scaled(width, 1.0, seed),
    "scale and shift": lambda width, seed: scaled(width, 0.3 + seed, seed),
    "whitened": whitened,
}
KINDS = [{}, {"subtract_b_dec": False}, {"out": 4}, {"out": 4, "skip": True}]


@pytest.mark.parametrize("units", UNITS)
def test_units_and_back(units):
    made, x = UNITS[units](6, 1), torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(made.back(made.apply(x)), x)
    one = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(made.directions_back(made.directions(one).T).T, one)
    assert made.plain == (units == "plain")


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("spec", ALL, ids=names(ALL))
def test_folded_it_makes_the_same_of_raw_activations(build, x, spec, kind, units):
    sae, _ = build(**spec, **kind)
    sae, x = sae.double().eval(), x.double()
    inputs = UNITS[units](6, 1)
    outputs = UNITS[units](4, 2) if "out" in kind else inputs
    expected, f = outputs.back(sae(inputs.apply(x))), sae.encode(inputs.apply(x))
    folded = copy.deepcopy(sae)
    folded.fold(inputs, outputs)
    found = folded.encode(x)
    torch.testing.assert_close(folded(x), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(found != 0, f != 0)
    assert 0 < (f != 0).double().mean() < 1
    torch.testing.assert_close(found, f / outputs.scale, rtol=1e-9, atol=1e-9)
    if outputs.matrix is None:
        assert torch.equal(folded.W_dec, sae.W_dec), "decoder rows of norm 1 stay so"
    assert any(not torch.equal(a, b) for a, b in zip(folded.parameters(), sae.parameters(), strict=True)) == (units != "plain")


def test_a_scale_of_one_hook_leaves_the_encoder_as_it_is(build):
    sae, _ = build(architecture="relu")
    folded, units = copy.deepcopy(sae), Units(torch.zeros(6), 0.37)
    folded.fold(units, units)
    assert torch.equal(folded.W_enc, sae.W_enc)


@pytest.mark.parametrize("init", ["tied", "linear"])
def test_shifted_relu_learns_as_max_of_z_minus_theta_would(build, x, init):
    """What is trained, with its bias at b - theta, against max(z - theta, 0) itself with b from its beginning, step by step."""
    sae, _ = build(**SHIFTED, theta=0.3, init=init)
    sae.initialise(torch.ones(6))
    plainly = {name: parameter.detach().clone().requires_grad_() for name, parameter in sae.named_parameters()}
    plainly["b_enc"] = (plainly["b_enc"].detach() + 0.3).requires_grad_()
    if init == "tied":
        assert not plainly["b_enc"].abs().max() > 1e-7
    ours, theirs = torch.optim.Adam(sae.parameters(), lr=0.01), torch.optim.Adam(plainly.values(), lr=0.01)
    for _ in range(20):
        sae.losses(x, x, Step(VARIANCE)).total.backward()
        z = (x - plainly["b_dec"]) @ plainly["W_enc"] + plainly["b_enc"]
        f = torch.maximum(z - 0.3, torch.zeros(()))
        error = (f @ plainly["W_dec"] + plainly["b_dec"] - x).square().sum(1).mean() / VARIANCE
        (error + 0.2 * (f * plainly["W_dec"].norm(dim=1)).sum(1).mean() / VARIANCE**0.5).backward()
        for one in (ours, theirs):
            one.step()
            one.zero_grad()
    plainly["b_enc"] = plainly["b_enc"] - 0.3
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter, plainly[name], rtol=1e-4, atol=1e-5, msg=name)
