"""Latents and reconstructions of each architecture, computed by hand, and its weights before the first step."""

import numpy as np
import pytest
import torch

from pipeline.saes import checkpoint
from tests.saes.formulas import ALL, GATED, JUMPRELU, RELU, SHIFTED, TOPK

SKIP = {"out": 4, "skip": True}
SPECS = [*ALL, {**RELU, "subtract_b_dec": False}, {**TOPK, "signed": True}, {**RELU, "out": 4}, {**JUMPRELU, **SKIP}, {**GATED, **SKIP}]


def by_hand(sae, spec: dict, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstructions, latent by latent, in float64."""
    w = {name: value.double().numpy() for name, value in sae.state_dict().items()}
    rows, latents, kind = x.double().numpy(), len(w["W_dec"]), spec["architecture"]
    f = np.zeros((len(rows), latents))
    for i, row in enumerate(rows):
        centred = row - w["b_dec"] if spec.get("subtract_b_dec", "out" not in spec) else row
        product = [sum(centred[d] * w["W_enc"][d, m] for d in range(len(row))) for m in range(latents)]
        if kind == "gated":
            for m in range(latents):
                if product[m] + w["b_gate"][m] > 0:
                    f[i, m] = max(product[m] * np.exp(w["r_mag"][m]) + w["b_mag"][m], 0.0)
            continue
        pre = [product[m] + w["b_enc"][m] for m in range(latents)]
        allowed = sorted(range(latents), key=lambda m: -pre[m])[: spec["k"] if kind == "topk" else latents]
        for m in allowed:
            over = w["threshold"][m] if "threshold" in w else -np.inf if spec.get("signed") else 0.0
            f[i, m] = pre[m] if pre[m] > over else 0.0
    found = [sum(f[i, m] * w["W_dec"][m] for m in range(latents)) + w["b_dec"] for i in range(len(rows))]
    return f, np.array(found) + (rows @ w["W_skip"].T if "W_skip" in w else 0)


@pytest.mark.parametrize("bias", [0.0, -4.0, 50.0])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_latents_and_reconstructions_are_those_of_the_formula(build, x, spec, bias):
    sae, _ = build(bias=bias, **spec)
    f, x_hat = by_hand(sae, spec, x)
    found = sae.encode(x)
    np.testing.assert_allclose(found.detach(), f, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae(x).detach(), x_hat, rtol=1e-4, atol=1e-3)
    assert np.array_equal(found.detach() != 0, f != 0)


def test_topk_fires_at_most_k_and_fewer_when_few_are_positive(build, x):
    fired = {bias: (build(bias=bias, **TOPK)[0].encode(x) != 0).sum(1) for bias in (50.0, -4.0, -50.0)}
    assert (fired[50.0] == 3).all()
    assert 0 < fired[-4.0].float().mean() < 3
    assert (fired[-50.0] == 0).all()
    assert ((build(bias=-50.0, **TOPK, signed=True)[0].encode(x) != 0).sum(1) == 3).all()


def test_the_published_size():
    for spec in (RELU, TOPK):
        sae, _ = checkpoint.build({**spec, "latents": 2048}, 512)
        assert sum(p.numel() for p in sae.parameters()) == 2_099_712


def test_eight_times_the_width_when_no_number_is_given():
    assert checkpoint.build(RELU, 6)[0].W_dec.shape == (48, 6)


BEGIN = {"shifted-relu": {"b_enc": -0.1}, "jumprelu": {"threshold": 0.3}}
"""What is not 0 at the beginning."""


def beside_directions(sae) -> dict[str, torch.Tensor]:
    shared = ("W_enc", "W_dec", "W_skip", "b_dec", "multiplier", "average", "batches")
    return {name: value for name, value in [*sae.named_parameters(), *sae.named_buffers()] if name not in shared}


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_tied_initial_weights(spec):
    sae, _ = checkpoint.build({**spec, "latents": 40}, 6)
    mean = torch.arange(6.0)
    sae.initialise(mean)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.equal(sae.b_dec, mean)
    for name, value in beside_directions(sae).items():
        assert torch.equal(value, torch.full((40,), BEGIN.get(spec["architecture"], {}).get(name, 0.0))), name
    assert (sae.W_dec @ sae.W_dec.T - torch.eye(40)).abs().max() < 0.999, "directions differ"
    assert sae.W_dec.mean().abs() < 0.1


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_a_tied_encoder_is_scaled_so_that_rows_are_reconstructed_best(spec):
    """What fires is what would fire with norm 1, as large as reconstructs best: longer or shorter latents have the larger error. Where an
    L1 penalty is to make latents sparse, they begin at a third of that."""
    sae, _ = checkpoint.build({**spec, "latents": 40}, 6)
    x = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) + torch.arange(6.0)
    sae.initialise(torch.arange(6.0))
    plain = sae.begin(x)
    sae.initialise(torch.arange(6.0), x)
    factor = sae.W_enc.norm(dim=0).mean()
    assert 0.02 < factor < 0.7
    torch.testing.assert_close(sae.W_enc, factor * sae.W_dec.T)
    torch.testing.assert_close(sae.begin(x), factor * plain)
    for name, value in beside_directions(sae).items():
        torch.testing.assert_close(value, torch.full((40,), factor.item() * BEGIN.get(spec["architecture"], {}).get(name, 0.0)))
    best = 3.0 if spec["architecture"] in ("relu", "shifted-relu", "gated") else 1.0
    errors = [(sae.decode(best * share * sae.begin(x)) - x).square().sum() for share in (0.99, 1.0, 1.01)]
    assert errors[1] < min(errors[0], errors[2])


def test_rows_that_nothing_is_active_for_leave_the_encoder_as_it_is():
    sae, _ = checkpoint.build({**JUMPRELU, "threshold": 100, "latents": 40}, 6)
    sae.initialise(torch.zeros(6), torch.ones(5, 6))
    assert torch.equal(sae.W_enc, sae.W_dec.T)


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_latents_that_start_again_have_what_they_began_with_and_the_others_what_they_had(build, spec):
    sae, _ = build(**spec)
    first, which = {name: value.clone() for name, value in beside_directions(sae).items()}, torch.tensor([3, 17])
    sae.restart(which)
    others = torch.ones(20, dtype=torch.bool).index_fill(0, which, False)
    for name, value in beside_directions(sae).items():
        assert torch.equal(value[others], first[name][others])
        if name != "threshold" or spec["architecture"] == "jumprelu":  # of BatchTopK it is one for all
            assert torch.equal(value[which], torch.full((2,), BEGIN.get(spec["architecture"], {}).get(name, 0.0)))


def test_a_transcoder_begins_with_short_columns_and_without_a_skip_map():
    sae, _ = checkpoint.build({**RELU, "latents": 40, "hook": "a", "output": "b", "outputs": ["b"], "skip": True}, 6, 4)
    sae.initialise(torch.arange(4.0))
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.full((40,), 0.1))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert sae.W_skip.shape == (4, 6)
    assert not sae.W_skip.any()
    assert torch.equal(sae.b_dec, torch.arange(4.0))


@pytest.mark.parametrize("init", ["tied", "linear"])
@pytest.mark.parametrize("spec", ALL, ids=str)
def test_decoder_rows_that_are_kept_at_norm_one_begin_there(spec, init):
    sae, settings = checkpoint.build({**spec, "init": init, "latents": 90}, 25)
    sae.initialise(torch.zeros(25))
    norms = sae.W_dec.norm(dim=1)
    if settings.decoder == "unit" or init == "tied":
        torch.testing.assert_close(norms, torch.ones(90))
    else:
        assert (norms - 1).abs().min() > 1e-3


@pytest.mark.parametrize(("spec", "biases"), [(RELU, ["b_enc"]), (GATED, ["b_gate", "b_mag"]), (SHIFTED, [])], ids=str)
def test_linear_initial_weights_are_uniform_as_torchs_are(spec, biases):
    sae, _ = checkpoint.build({**spec, "init": "linear", "latents": 900}, 25)
    sae.unit_decoder = lambda: False
    sae.initialise(torch.arange(25.0))
    if spec is SHIFTED:
        biases, sae.b_enc.data = ["b_enc"], sae.b_enc.data + 0.1
    for name, inputs in (("W_enc", 25), *((bias, 25) for bias in biases), ("W_dec", 900), ("b_dec", 900)):
        parameter, bound = getattr(sae, name), inputs**-0.5
        assert parameter.abs().max() <= bound * (1 + 1e-5)
        assert parameter.abs().max() > 0.85 * bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.25 if parameter.numel() < 100 else 0.05)
