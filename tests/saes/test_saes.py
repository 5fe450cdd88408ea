"""Each architecture against its formula written out, and the run that trains it."""

import numpy as np
import pytest
import torch

from pipeline.artifacts.errors import UserError
from pipeline.saes import checkpoint
from pipeline.saes.train import log_sparsity, train

RELU = {"architecture": "relu"}
TOPK = {"architecture": "topk", "k": 3}
ALL = [RELU, {**RELU, "subtract_b_dec": False}, {**RELU, "penalty": "plain", "error": "element"}, TOPK]


SHARES = [(20, 0.0), (400, -12.0), (400, -100.0)]
"""Latents and bias such that many are active, a few, and none: each is multiplied in its own way."""


def by_hand(sae, spec: dict, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstructions, latent by latent, in float64."""
    w = {name: value.double().numpy() for name, value in sae.state_dict().items()}
    rows, latents = x.double().numpy(), len(w["b_enc"])
    f = np.zeros((len(rows), latents))
    for i, row in enumerate(rows):
        centred = row - w["b_dec"] if spec.get("subtract_b_dec", True) else row
        pre = [sum(centred[d] * w["W_enc"][d, m] for d in range(len(row))) + w["b_enc"][m] for m in range(latents)]
        allowed = sorted(range(latents), key=lambda m: -pre[m])[: spec.get("k", latents)]
        for m in allowed:
            f[i, m] = max(pre[m], 0.0)
    return f, np.array([sum(f[i, m] * w["W_dec"][m] for m in range(latents)) + w["b_dec"] for i in range(len(rows))])


@pytest.mark.parametrize("bias", [0.0, -4.0, 50.0])
@pytest.mark.parametrize("spec", ALL, ids=str)
def test_latents_and_reconstructions_are_those_of_the_formula(build, x, spec, bias):
    sae, _ = build(bias=bias, **spec)
    f, x_hat = by_hand(sae, spec, x)
    found = sae.encode(x)
    np.testing.assert_allclose(found.detach(), f, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae.decode(found).detach(), x_hat, rtol=1e-4, atol=1e-3)
    assert np.array_equal(found.detach() != 0, f != 0)


def test_topk_fires_at_most_k_and_fewer_when_few_are_positive(build, x):
    fired = {bias: (build(bias=bias, **TOPK)[0].encode(x) != 0).sum(1) for bias in (50.0, -4.0, -50.0)}
    assert (fired[50.0] == 3).all()
    assert 0 < fired[-4.0].float().mean() < 3
    assert (fired[-50.0] == 0).all()


PUBLISHED = [
    {**RELU, "l1": 0.3, "error": error, "penalty": penalty, "subtract_b_dec": subtract}
    for error in ("variance", "element")
    for penalty in ("decoder-norm", "plain")
    for subtract in (True, False)
]


def test_the_shares_are_what_they_are_meant_to_be(build, x):
    active = [(build(bias=bias, **RELU, latents=latents)[0].encode(x) != 0).float().mean().item() for latents, bias in SHARES]
    assert active[0] > 0.2
    assert 0 < active[1] < 0.05
    assert active[2] == 0


@pytest.mark.parametrize(("latents", "bias"), SHARES)
@pytest.mark.parametrize("spec", PUBLISHED, ids=str)
def test_the_loss_of_relu_is_error_plus_l1(build, x, spec, bias, latents):
    sae, _ = build(bias=bias, **spec, latents=latents)
    f, x_hat = by_hand(sae, spec, x)
    squared = ((x_hat - x.double().numpy()) ** 2).sum()
    norms = np.linalg.norm(sae.W_dec.detach().double().numpy(), axis=1) if spec["penalty"] == "decoder-norm" else np.ones(latents)
    error = squared / 9 / 5.0 if spec["error"] == "variance" else squared / (9 * 6)
    l1 = (f * norms).sum() / 9
    found = sae.losses(x, variance=5.0)
    assert found.total.item() == pytest.approx(error + 0.3 * l1, rel=1e-4)
    assert {name: value.item() for name, value in found.parts.items()} == pytest.approx({"error": error, "l1": l1}, rel=1e-4)
    assert found.squared_error.item() == pytest.approx(squared, rel=1e-4)
    assert np.array_equal(found.fired_M, (f != 0).sum(0))


@pytest.mark.parametrize(("latents", "bias"), SHARES)
def test_the_loss_of_topk_is_the_share_of_variance(build, x, bias, latents):
    sae, _ = build(bias=bias, **TOPK, latents=latents)
    f, x_hat = by_hand(sae, TOPK, x)
    squared = ((x_hat - x.double().numpy()) ** 2).sum()
    found = sae.losses(x, variance=5.0)
    assert found.total.item() == pytest.approx(squared / 9 / 5.0, rel=1e-4)
    assert found.squared_error.item() == pytest.approx(squared, rel=1e-4)
    assert np.array_equal(found.fired_M, (f != 0).sum(0))


@pytest.mark.parametrize(("latents", "bias"), SHARES[:2])
@pytest.mark.parametrize("spec", [*ALL, {**RELU, "l1": 0.3, "penalty": "plain", "subtract_b_dec": False}], ids=str)
def test_gradients_are_those_of_the_plain_formula(build, x, spec, bias, latents):
    """Whatever way few active latents are multiplied, autograd over the dense formula says the same."""
    sae, settings = build(bias=bias, **spec, latents=latents)
    sae.losses(x, variance=5.0).total.backward()
    found = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    f = sae.encode(x)
    squared = (f @ sae.W_dec + sae.b_dec - x).square().sum()
    loss = squared / 9 / 5.0 if spec.get("error", "variance") == "variance" else squared / (9 * 6)
    if spec["architecture"] == "relu":
        loss = loss + settings.l1 * (f * (sae.W_dec.norm(dim=1) if settings.penalty == "decoder-norm" else 1)).sum(1).mean()
    loss.backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-3)


def test_the_published_size():
    for spec in (RELU, TOPK):
        sae, _ = checkpoint.build({**spec, "latents": 2048}, 512)
        assert sum(p.numel() for p in sae.parameters()) == 2_099_712


def test_eight_times_the_width_when_no_number_is_given():
    assert checkpoint.build(RELU, 6)[0].W_dec.shape == (48, 6)


@pytest.mark.parametrize("spec", [RELU, TOPK], ids=str)
def test_tied_initial_weights(spec):
    sae, _ = checkpoint.build({**spec, "latents": 40}, 6)
    mean = torch.arange(6.0)
    sae.initialise(mean)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.equal(sae.b_dec, mean)
    assert not sae.b_enc.any()
    assert (sae.W_dec @ sae.W_dec.T - torch.eye(40)).abs().max() < 0.999, "directions differ"
    assert sae.W_dec.mean().abs() < 0.1


def test_linear_initial_weights_are_uniform_as_torchs_are():
    sae, _ = checkpoint.build({**RELU, "init": "linear", "latents": 900}, 25)
    sae.initialise(torch.arange(25.0))
    for parameter, inputs in ((sae.W_enc, 25), (sae.b_enc, 25), (sae.W_dec, 900), (sae.b_dec, 900)):
        bound = inputs**-0.5
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.85 * bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.25 if parameter.numel() < 100 else 0.05)


def rows(count: int = 300, width: int = 8, seed: int = 0) -> np.ndarray:
    """Rows that are sparse sums of twelve directions, away from zero."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(12, width))
    return 2.0 + (generator.random((count, 12)) * (generator.random((count, 12)) < 0.15)) @ directions


TRAINING = {"epochs": 8, "batch": 30, "lr": 0.01, "schedule": {"shape": "linear", "warmup": 5}}


def run(store, **spec):
    """A trained SAE and its curve."""
    torch.manual_seed(sum(map(ord, str(spec))))  # whatever ran before
    sae, settings = checkpoint.build({"latents": 24, "training": TRAINING, **spec}, 8)
    return sae, train(sae, settings, store, "x")


def bits(sae) -> list[bytes]:
    return [value.contiguous().numpy().tobytes() for value in sae.state_dict().values()]


@pytest.fixture
def store(make_store):
    return make_store(rows(), chunk_rows=50, shard_rows=100)


@pytest.mark.parametrize("spec", [{**RELU, "l1": 0.01}, TOPK], ids=str)
def test_it_learns_and_equal_runs_end_in_equal_bytes(store, spec):
    (sae, curve), (again, same), (other, _) = run(store, **spec), run(store, **spec), run(store, **spec, seed=1)
    assert curve.rows[-1]["fve"] > 0.7
    assert curve.rows[-1]["loss"] < 0.5 * curve.rows[0]["loss"]
    assert bits(sae) == bits(again)
    assert curve.rows == same.rows
    assert bits(sae) != bits(other)


def test_a_run_does_not_depend_on_how_the_store_is_cut(make_store):
    """While its rows fit the memory."""
    found = {chunk: bits(run(make_store(rows(), chunk_rows=chunk, shard_rows=100, name=f"s{chunk}"), **TOPK)[0]) for chunk in (50, 100)}
    assert found[50] == found[100]


def test_variants_of_a_seed_are_paired(store, monkeypatch):
    """Same initial weights and same batches, whatever else is swept."""
    seen = {}
    for l1 in (0.0, 0.5):
        sae, settings = checkpoint.build({**RELU, "latents": 24, "l1": l1, "training": TRAINING}, 8)
        losses, log = sae.losses, seen.setdefault(l1, [])
        monkeypatch.setattr(sae, "losses", lambda x, variance, losses=losses, log=log, sae=sae: (
            log.append((x.clone(), sae.W_dec.detach().clone())), losses(x, variance))[1])  # fmt: skip
        train(sae, settings, store, "x")
    assert torch.equal(seen[0.0][0][1], seen[0.5][0][1])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen[0.0], seen[0.5], strict=True))
    assert not torch.equal(seen[0.0][-1][1], seen[0.5][-1][1])


def test_a_run_is_all_rows_in_every_epoch(store, monkeypatch):
    sae, settings = checkpoint.build({**TOPK, "latents": 24, "training": TRAINING}, 8)
    losses, seen = sae.losses, []
    monkeypatch.setattr(sae, "losses", lambda x, variance: seen.append(x) or losses(x, variance))
    curve = train(sae, settings, store, "x")
    assert curve.rows[-1]["step"] == len(seen) == 80
    every = np.sort(torch.cat(seen[:10])[:, 0].numpy())
    assert np.array_equal(every, np.sort(rows().astype(np.float32)[:, 0]))


def test_the_numbers_of_the_curve_are_those_of_the_rows_seen(store):
    """With a learning rate too small to move a float, a row of the curve is the first weights measured on some batches."""
    spec = {**RELU, "l1": 0.2, "training": {**TRAINING, "epochs": 1, "batch": 300, "lr": 1e-30}}
    sae, curve = run(store, **spec)
    x = torch.from_numpy(rows().astype(np.float32))
    with torch.no_grad():
        f = sae.encode(x)
        squared = (sae.decode(f) - x).double().square().sum().item()
    (row,) = curve.rows
    assert row["fve"] == pytest.approx(1 - squared / 300 / rows().astype(np.float32).astype(np.float64).var(0).sum(), rel=1e-4)
    assert row["l0"] == pytest.approx((f != 0).sum().item() / 300)
    assert row["dead"] == pytest.approx((f == 0).all(0).sum().item() / 24)
    assert row["loss"] == pytest.approx(row["error"] + 0.2 * row["l1"], rel=1e-5)


def test_a_constant_hook_is_told(make_store):
    with pytest.raises(UserError, match="x is constant"):
        run(make_store(np.full((20, 8), 0.5)), **TOPK)


@pytest.mark.parametrize("seed", range(6))
def test_a_constant_hook_is_told_whatever_the_constant_is(make_store, seed):
    """Float sums of a constant's squares miss the square of its sum by a little."""
    constant = np.tile(np.random.default_rng(seed).normal(size=8) * 10, (300, 1))
    with pytest.raises(UserError, match="x is constant"):
        run(make_store(constant, chunk_rows=50, shard_rows=100), **TOPK)


def test_a_learning_rate_that_breaks_it_is_told(store):
    with pytest.raises(UserError, match=r"training diverged: .* lower training\.lr"):
        run(store, **RELU, training={**TRAINING, "lr": 1e30})


def test_log_sparsity_is_the_log_of_how_often_a_latent_fires(build, store):
    sae, _ = build(width=8, **TOPK)
    with torch.no_grad():
        sae.b_enc[0] = -1e6
        f = sae.encode(torch.from_numpy(rows().astype(np.float32)))
    found = log_sparsity(sae, store["x"], batch=70)
    expected = [np.log10((f[:, m] != 0).sum().item() / 300 + 1e-10) for m in range(20)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == -10
