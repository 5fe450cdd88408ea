"""Runs: what the curve says, what pairs variants, units, warm-up, divergence, held-out rows."""

import json
from itertools import pairwise
from math import log10

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.artifacts.errors import UserError
from pipeline.saes.train import log_sparsity, train
from pipeline.study.kinds import kinds
from pipeline.study.sae import SAETraining
from pipeline.training.curve import Curve
from tests.saes.runs import RELU, TOPK, TRAINING, bits, listened, made, rows, run


@pytest.mark.parametrize("spec", [RELU, TOPK], ids=str)
def test_it_learns_and_equal_runs_end_in_equal_bytes(store, spec):
    one, again, other = run(store, **spec), run(store, **spec), run(store, **spec, seed=1)
    assert one.at.curve[-1]["fve"] > 0.7
    assert one.at.curve[-1]["loss"] < 0.6 * one.at.curve[0]["loss"]
    assert bits(one) == bits(again)
    assert one.at.curve == again.at.curve
    assert bits(one) != bits(other)


def test_a_run_does_not_depend_on_how_the_store_is_cut(make_store):
    """While its rows fit the memory."""
    found = {chunk: bits(run(make_store(rows(), chunk_rows=chunk, shard_rows=100, name=f"s{chunk}"), **TOPK)) for chunk in (50, 100)}
    assert found[50] == found[100]


def test_variants_of_a_seed_are_paired(store):
    """Same initial weights and same batches, whatever else is swept."""
    seen = {}
    for l1 in (0.0, 0.5):
        found, source, batches = made(store, **{**RELU, "l1": l1})
        train({"sae": listened(found, seen.setdefault(l1, []))}, source, batches)
    assert torch.equal(seen[0.0][0][1], seen[0.5][0][1])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen[0.0], seen[0.5], strict=True))
    assert not torch.equal(seen[0.0][-1][1], seen[0.5][-1][1])


def test_a_run_is_all_rows_in_every_epoch(store):
    found, source, batches = made(store, **TOPK)
    train({"sae": listened(found, seen := [])}, source, batches)
    assert found.at.curve[-1]["step"] == found.at.step == len(seen) == 80
    assert found.at.rows == 8 * 300
    for epoch in range(8):
        every = np.sort(torch.cat([x for x, *_ in seen[10 * epoch : 10 * epoch + 10]])[:, 0].numpy())
        assert np.array_equal(every, np.sort(rows().astype(np.float32)[:, 0]))


def still(store, validation=None, **spec):
    """A run whose learning rate is too small to move a float."""
    training = {**TRAINING, "epochs": 1, "batch": 300, "lr": 1e-30, "sparsity_warmup": 0}
    return run(store, validation, **{**spec, "training": training})


def test_the_numbers_of_the_curve_are_those_of_the_rows_seen(store):
    found = still(store, **{**RELU, "l1": 0.2})
    x = torch.from_numpy(rows().astype(np.float32))
    with torch.no_grad():
        f = found.sae.encode(x)
        squared = (found.sae.decode(f) - x).double().square().sum().item()
    (row,) = found.at.curve
    assert row["fve"] == pytest.approx(1 - squared / 300 / rows().astype(np.float32).astype(np.float64).var(0).sum(), rel=1e-4)
    assert row["l0"] == pytest.approx((f != 0).sum().item() / 300)
    assert row["dead"] == pytest.approx((f == 0).all(0).sum().item() / 24)
    assert row["loss"] == pytest.approx(row["error"] + 0.2 * row["l1"], rel=1e-5)


def test_what_is_measured_on_held_out_rows_is_of_those_rows(store, validation):
    found = still(store, validation, **RELU)
    x = rows(200, seed=1).astype(np.float32).astype(np.float64)
    w = {name: value.double().numpy() for name, value in found.sae.state_dict().items()}
    f = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    squared = ((f @ w["W_dec"] + w["b_dec"] - x) ** 2).sum()
    (row,) = found.at.curve
    assert row["validation_fve"] == pytest.approx(1 - squared / ((x - x.mean(0)) ** 2).sum(), rel=1e-5)
    assert row["validation_l0"] == pytest.approx((f > 0).sum() / 200)
    assert row["validation_dead"] == pytest.approx((f == 0).all(0).mean())
    for share in (10, 50, 90):
        assert row[f"validation_density_{share}"] == pytest.approx(np.quantile((f > 0).mean(0), share / 100))


UNITS = [{}, {"centre": True}, {"scale": "norm"}, {"centre": True, "scale": "norm"}, {"centre": True, "scale": "whiten"}]


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("normalise", UNITS, ids=str)
def test_held_out_numbers_are_in_units_of_the_activations(make_store, normalise, subtract):
    """Measured on the rows it is trained on, with weights that do not move, folded weights say what the training said in its own units."""
    store = make_store(rows(), chunk_rows=50, shard_rows=100, covariance=["x"])
    found = still(store, store, **TOPK, normalise=normalise, subtract_b_dec=subtract)
    (row,) = found.at.curve
    assert row["validation_l0"] == pytest.approx(row["l0"], rel=1e-3)
    if normalise.get("scale") != "whiten":
        assert row["validation_fve"] == pytest.approx(row["fve"], rel=1e-4)
    inside = found.data.inputs.apply(torch.from_numpy(rows().astype(np.float32))).double()
    assert found.data.variance == pytest.approx((inside - inside.mean(0)).square().sum(1).mean().item(), rel=1e-4)
    if normalise.get("scale") == "norm":
        assert inside.square().sum(1).mean().item() == pytest.approx(8, rel=1e-4)
    if normalise.get("scale") == "whiten":
        torch.testing.assert_close(inside.T @ inside / 300, torch.eye(8, dtype=torch.float64), rtol=1e-3, atol=1e-3)
    if normalise.get("centre"):
        assert inside.mean(0).abs().max() < 1e-4


def test_whitening_without_a_covariance_says_which_setting_to_give(store):
    with pytest.raises(UserError, match=r"covariance: \[x\]"):
        made(store, **TOPK, normalise={"centre": True, "scale": "whiten"})


@pytest.mark.parametrize("how", ["mean", "geometric-median", "zero"])
def test_b_dec_begins_at_a_centre_in_units_of_training(store, how):
    found, *_ = made(store, **TOPK, b_dec=how, normalise={"scale": "norm"})
    x = found.data.inputs.apply(torch.from_numpy(rows().astype(np.float32)))
    b = found.sae.b_dec.detach()
    if how == "zero":
        assert not b.any()
    elif how == "mean":
        torch.testing.assert_close(b, x.mean(0), rtol=1e-5, atol=1e-5)
    else:
        pull = ((x - b) / (x - b).norm(dim=1, keepdim=True)).sum(0)
        assert pull.norm() < 1e-2, "at the median the unit vectors to all rows cancel"
        assert (b - x.mean(0)).norm() > 0.01


@pytest.mark.parametrize("normalise", [{}, {"centre": True, "scale": "norm"}], ids=str)
def test_a_run_begins_with_an_encoder_that_is_scaled_by_rows_in_units_of_training(store, normalise):
    found, *_ = made(store, **TOPK, normalise=normalise)
    x = found.data.inputs.apply(torch.from_numpy(rows().astype(np.float32)))
    norms = found.sae.W_enc.norm(dim=0)
    torch.testing.assert_close(norms, norms.mean().expand_as(norms))
    error, *others = [(found.sae.decode(share * found.sae.encode(x)) - x).square().sum() for share in (1.0, 0.8, 1.25)]
    assert error < min(others)


def test_the_learning_rate_follows_the_published_rule_when_none_is_given(store):
    """2e-4 at 2^14 latents, and as one over the square root (Gao et al. 2024, figure 3), 5.2e-3 at 24; in a run as short as this raised, by
    less than eight times, to the most there is."""
    training = {**TRAINING, "schedule": {"shape": "constant"}}
    del training["lr"]
    found = run(store, **TOPK, training=training)
    assert found.at.curve[-1]["lr"] == pytest.approx(6e-3)
    assert found.facts()["lr"] == found.at.curve[-1]["lr"]


@pytest.mark.parametrize(("steps", "times"), [(1, 8), (1024, 8), (4096, 4), (2**14, 2), (2**16, 1), (10**6, 1)])
def test_the_published_rate_is_raised_in_short_runs(steps, times):
    assert SAETraining().for_run(2**14, steps).lr == pytest.approx(times * 2e-4)
    assert SAETraining().for_run(2**12, steps).lr == pytest.approx(2 * times * 2e-4)
    assert SAETraining(lr=0.3).for_run(2**12, steps).lr == 0.3
    assert SAETraining().for_run(16, steps).lr == pytest.approx(2e-4 * 2**5), "what the published rule gives is never lowered"


def test_the_penalty_rises_and_k_falls_as_the_settings_say(store):
    training = {**TRAINING, "sparsity_warmup": 0.25}
    found, source, batches = made(store, **TOPK, k_start=11, k_anneal=0.5, training=training)
    train({"sae": listened(found, seen := [])}, source, batches)
    told = [at for *_, at in seen]
    assert [at.sparsity for at in told[:20]] == pytest.approx([(n + 1) / 20 for n in range(20)])
    assert {at.sparsity for at in told[20:]} == {1.0}
    assert [at.k for at in told[:40]] == [round(11 - 8 * n / 40) for n in range(40)]
    assert {at.k for at in told[40:]} == {3}


def test_gradients_are_clipped(store):
    """Adam's second moment after one step is that of the clipped gradient."""
    for clip, norm in ((1e-3, 1e-3), (None, None)):
        found, _, batches = made(store, **TOPK, training={**TRAINING, "clip": clip})
        batch = next(iter(batches.batches()))
        found.step(batch["x"], batch["x"])
        size = sum((found.optimizer.state(p)["exp_avg"] / 0.1).square().sum().item() for p in found.sae.parameters()) ** 0.5
        assert size == pytest.approx(norm, rel=1e-3) if norm else size > 0.01


def test_decoder_rows_keep_norm_one_and_the_parallel_gradient_does_not_reach_adam(store):
    found, _, batches = made(store, **TOPK)
    batch = next(iter(batches.batches()))
    before = found.sae.W_dec.detach().clone()
    found.step(batch["x"], batch["x"])
    moment = found.optimizer.state(found.sae.W_dec)["exp_avg"]
    assert moment.abs().max() > 1e-4
    assert torch.linalg.vecdot(moment, before).abs().max() < 1e-6
    torch.testing.assert_close(found.sae.W_dec.norm(dim=1), torch.ones(24))


def test_a_free_decoder_is_left_alone(store):
    found = run(store, **{**RELU, "decoder": "free"})
    assert (found.sae.W_dec.norm(dim=1) - 1).abs().max() > 0.01


@pytest.mark.parametrize("latents", [24, 240], ids=["dense", "sparse"])
@pytest.mark.parametrize("architecture", kinds("saes"))
def test_the_optimizer_copies_no_weights_gradients_or_moments(store, architecture, latents):
    """Fused kernels on the processor copy what does not lie in memory by row, forth and back."""
    more = {"k": 3} if "k" in kinds("saes")[architecture].model_fields else {}
    found, source, batches = made(store, architecture=architecture, latents=latents, **more)
    seen = []
    found.optimizer.adamw.register_step_pre_hook(
        lambda adamw, *_: seen.append([t for p in adamw.param_groups[0]["params"] for t in (p, p.grad, *adamw.state[p].values())])
    )
    train({"sae": found}, source, batches)
    assert all(tensor.is_contiguous() for some in seen for tensor in some if tensor is not None)
    assert seen[1][1].shape == (latents, 8), "the encoder's gradient"


@pytest.mark.parametrize("latents", [24, 240], ids=["dense", "sparse"])
@pytest.mark.parametrize("architecture", kinds("saes"))
def test_weights_moments_and_sums_stay_in_float32_under_bfloat16(store, architecture, latents):
    spec = {"architecture": architecture, "latents": latents, "normalise": {"centre": True, "scale": "norm"}}
    spec |= {"k": 3} if "k" in kinds("saes")[architecture].model_fields else {}
    found, source, batches = made(store, **spec, training={**TRAINING, "lr": 0.002, "precision": "bfloat16"})
    losses, seen = found.sae.losses, []
    found.sae.losses = lambda *given: seen.append(losses(*given)) or seen[-1]
    train({"sae": found}, source, batches)
    assert {p.dtype for p in found.sae.parameters()} == {torch.float32}
    state = [value.dtype for p in found.sae.parameters() for value in found.optimizer.state(p).values()]
    assert set(state) == {torch.float32}
    assert {value.dtype for one in seen for value in (one.total, one.squared_error, *one.parts.values())} == {torch.float32}
    exact = run(store, **spec, training={**TRAINING, "lr": 0.002})
    assert bits(found) != bits(exact), "products were in bfloat16"
    assert 1 - found.at.curve[-1]["fve"] == pytest.approx(1 - exact.at.curve[-1]["fve"], rel=0.05, abs=0.05)


def test_bfloat16_without_such_products_is_told(store, monkeypatch):
    monkeypatch.setattr("pipeline.saes.train.has_bfloat16", lambda where: False)
    with pytest.raises(UserError, match=r"training\.precision: .* give float32"):
        made(store, **TOPK, training={**TRAINING, "precision": "bfloat16"})


@pytest.mark.parametrize("taken", [{"keep": "best"}, {"stop_after": 3}, {"schedule": {"shape": "plateau"}}], ids=str)
def test_what_goes_by_held_out_rows_takes_them(store, taken):
    with pytest.raises(UserError, match=rf"training\.{next(iter(taken))}: .*validation"):
        made(store, **TOPK, training={**TRAINING, **taken})


def test_training_stops_when_the_held_out_loss_no_longer_falls(store, validation):
    """With steps too large to settle, on rows of which few are seen."""
    training = {**TRAINING, "epochs": 60, "lr": 0.3, "schedule": {"shape": "constant"}, "stop_after": 3, "points": 60}
    found = run(store, validation, **TOPK, training=training)
    losses = [1 - row["validation_fve"] for row in found.at.curve]
    assert found.at.step < 600
    assert len(losses) - 1 - int(np.argmin(losses)) == 3
    assert all(min(losses[: n - 3]) > min(losses[n - 3 : n]) for n in range(4, len(losses)))


def test_the_best_weights_are_those_of_the_lowest_held_out_loss(store, validation):
    training = {**TRAINING, "lr": 0.3, "schedule": {"shape": "constant"}, "keep": "best", "epochs": 14}
    found = run(store, validation, **TOPK, training=training)
    fve = {row["step"]: row["validation_fve"] for row in found.at.curve}
    best = max(fve, key=fve.get)
    assert best != found.at.step
    assert found.facts()["kept_step"] == best
    assert found.facts()["validation_fve"] == fve[best]
    assert found.held_out.measure(found.kept())["validation_fve"] == fve[best]
    assert found.held_out.measure(found.folded())["validation_fve"] == fve[found.at.step]


def test_the_held_out_loss_is_that_of_training_where_a_penalty_is_part_of_it(make_store):
    """On the rows it is trained on, with weights that do not move, in whatever units."""
    store = make_store(rows(), chunk_rows=50, shard_rows=100)
    for normalise in ({}, {"centre": True, "scale": "norm"}):
        for spec in ({**RELU, "l1": 0.2}, {"architecture": "gated", "l1": 0.2}, {"architecture": "jumprelu", "l0": 0.05}):
            (row,) = still(store, store, **spec, normalise={"scale": "norm"} | normalise).at.curve
            assert row["validation_loss"] == pytest.approx(row["loss"], rel=1e-4)
            assert row["validation_loss"] > 1.01 * (1 - row["validation_fve"])
    (row,) = still(store, store, **TOPK).at.curve
    assert row["validation_loss"] == 1 - row["validation_fve"]
    (row,) = still(store, store, architecture="jumprelu", target_l0=4.0).at.curve
    off = row["validation_l0"] / 4 - 1
    assert abs(off) > 0.01
    assert row["validation_loss"] == pytest.approx(1 - row["validation_fve"] + off**2)


SETTLING = {
    "k": {"architecture": "batchtopk", "k": 2, "k_start": 8, "k_anneal": 0.75},
    "penalty": {**RELU, "l1": 0.3, "training": {"sparsity_warmup": 0.5}},
    "target": {"architecture": "jumprelu", "bandwidth": 0.2, "threshold": 0.05, "target_l0": 2.0},
}


@pytest.mark.parametrize("spec", SETTLING.values(), ids=SETTLING.keys())
def test_the_best_weights_are_as_sparse_as_the_run_was_meant_to_be(store, validation, spec):
    """The least error is that of the beginning, where more latents are active."""
    training = {**TRAINING, "epochs": 40, "points": 40, "keep": "best", **spec.get("training", {})}
    found = run(store, validation, **{**spec, "training": training})
    curve = {row["step"]: row for row in found.at.curve}
    kept, last = curve[found.kept_step], found.at.curve[-1]
    assert max(curve.values(), key=lambda row: row["validation_fve"])["validation_l0"] > 1.5 * last["validation_l0"]
    assert kept["validation_l0"] < 1.3 * last["validation_l0"]
    settled = found.spec.settled() * found.data.steps
    assert kept["validation_loss"] == min(row["validation_loss"] for row in curve.values() if row["step"] >= settled)


def test_a_run_does_not_end_while_k_still_falls(store, validation):
    """Its error only grows until then."""
    training = {**TRAINING, "epochs": 20, "points": 40, "stop_after": 2, "lr": 1e-4}
    found = run(store, validation, architecture="topk", k=1, k_start=12, k_anneal=0.8, training=training)
    assert found.at.step > 0.8 * found.data.steps
    assert found.at.curve[-1]["validation_fve"] < found.at.curve[0]["validation_fve"]


def test_a_plateau_lowers_the_learning_rate(store, validation):
    training = {**TRAINING, "epochs": 30, "lr": 0.3, "schedule": {"shape": "plateau", "patience": 1, "factor": 0.1}}
    found = run(store, validation, **TOPK, training=training)
    rates = [row["lr"] for row in found.at.curve]
    assert rates[0] == pytest.approx(0.3)
    assert rates[-1] < 0.031
    assert all(a >= b for a, b in pairwise(rates))


def test_a_constant_hook_is_told(make_store):
    with pytest.raises(UserError, match="x is constant"):
        run(make_store(np.full((20, 8), 0.5)), **TOPK)


@pytest.mark.parametrize("seed", range(6))
def test_a_constant_hook_is_told_whatever_the_constant_is(make_store, seed):
    """Float sums of a constant's squares miss the square of its sum by a little."""
    constant = np.tile(np.random.default_rng(seed).normal(size=8) * 10, (300, 1))
    with pytest.raises(UserError, match="x is constant"):
        run(make_store(constant, chunk_rows=50, shard_rows=100), **TOPK)


@pytest.mark.parametrize("seed", range(3))
def test_held_out_rows_that_are_all_the_same_are_told(store, make_store, seed):
    same = make_store(np.tile(np.random.default_rng(seed).normal(size=8) * 10, (60, 1)), name="same")
    with pytest.raises(UserError, match="hook x is constant over the 60 rows of the validation split that are measured: take"):
        made(store, same, **TOPK)


def test_a_learning_rate_that_breaks_it_is_told(store):
    with pytest.raises(UserError, match=r"training diverged: .* lower training\.lr"):
        run(store, **RELU, training={**TRAINING, "lr": 1e30, "when_wrong": "stop"})


def test_a_run_that_is_to_warn_goes_on_with_the_last_good_weights(store, capsys):
    """A batch that no float can hold comes in the middle."""
    found, _, batches = made(store, **RELU, training={**TRAINING, "points": 80})
    for number, batch in enumerate(batches.batches()):
        before = bits(found)
        x = batch["x"] * (float("inf") if number == 20 else 1.0)
        found.step(x, x)
        if found.at.ended:
            break
    assert number == 20
    assert bits(found) == before
    facts = found.facts()
    assert facts["kept_step"] == 20
    assert facts["steps"] == 21
    assert "training diverged" in facts["wrong"]
    assert "warning: training diverged" in capsys.readouterr().err
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("spec", [RELU, TOPK], ids=str)
def test_a_run_that_diverges_in_finite_numbers_is_told(store, spec):
    """Adam's steps are no larger for a larger gradient, and a rate a hundred times too large still leaves floats."""
    training = {**TRAINING, "lr": 3.0, "schedule": {"shape": "constant"}, "points": 8}
    with pytest.raises(
        UserError, match=r"training diverged: the error is [\d.]+ times the variance after step \d+; lower training\.lr, or give"
    ):
        run(store, **spec, training={**training, "when_wrong": "stop"})
    found = run(store, **spec, training=training)
    assert found.at.step < found.data.steps
    assert found.facts()["wrong"].endswith(f"The weights are those of step {found.at.good_step}")


def test_a_run_that_recovers_goes_on(store):
    training = {**TRAINING, "lr": 0.3, "schedule": {"shape": "constant"}, "points": 8, "when_wrong": "stop"}
    curve = run(store, **RELU, training=training).at.curve
    assert curve[0]["fve"] < -2
    assert curve[-1]["fve"] > 0.2


@pytest.mark.parametrize("validated", [True, False])
def test_that_the_mean_would_reconstruct_better_is_told(store, validation, validated):
    training = {**TRAINING, "lr": 1.0, "schedule": {"shape": "constant"}, "points": 8}
    found = run(store, validation if validated else None, architecture="batchtopk", k=3, training=training)
    row = found.at.curve[-1]
    fve = row["validation_fve" if validated else "fve"]
    assert -1 < fve < 0
    assert found.facts()["wrong"] == f"FVE is {fve:.3g} at the end: the mean would reconstruct better"


def test_an_l0_that_rises_under_a_penalty_is_told_before_the_end_too(store, capsys):
    found = run(store, **{**RELU, "l1": 1e-4}, training={**TRAINING, "epochs": 20, "points": 10})
    assert found.at.curve[-1]["l0"] > 1.2 * found.at.first_l0
    assert found.facts()["wrong"].startswith(f"L0 did not fall under the sparsity penalty: {found.at.first_l0:.4g} at the first step,")
    told = [line for line in capsys.readouterr().err.splitlines() if "L0 did not fall" in line]
    assert len(told) == 2
    assert told[0].startswith("after step 80: ")


@pytest.mark.parametrize("how", ["stop", "warn"])
def test_an_l0_that_a_penalty_did_not_move_is_told(store, capsys, how):
    training = {**TRAINING, "lr": 1e-9, "when_unmoved": how}
    if how == "stop":
        with pytest.raises(UserError, match="L0 did not fall"):
            run(store, **{**RELU, "l1": 0.5}, training=training)
    else:
        assert "L0 did not fall" in run(store, **{**RELU, "l1": 0.5}, training=training).facts()["wrong"]
        assert "warning: L0 did not fall" in capsys.readouterr().err


TARGET = {"architecture": "jumprelu", "l0": 0.01, "bandwidth": 0.2}
LONG = {**TRAINING, "epochs": 60, "when_unmoved": "stop"}


@pytest.mark.parametrize("how", ["stop", "warn"])
def test_an_l0_off_the_target_is_told(store, capsys, how):
    spec = {**TARGET, "target_l0": 1.0, "training": {**TRAINING, "lr": 1e-4, "when_unmoved": how}}
    if how == "stop":
        with pytest.raises(UserError, match=r"at the end, and 1 was asked for; .*when_unmoved: warn"):
            run(store, **spec)
    else:
        assert "1 was asked for" in run(store, **spec).facts()["wrong"]
        assert "and 1 was asked for" in capsys.readouterr().err


def test_an_l0_that_begins_at_the_target_and_stays_there_is_not_told(store):
    first = run(store, **TARGET, training={**TRAINING, "lr": 1e-9}).at.curve[-1]["l0"]
    assert run(store, **TARGET, target_l0=first, training={**TRAINING, "lr": 1e-9, "when_unmoved": "stop"}).facts()["wrong"] is None


def test_an_l0_that_reaches_its_target_is_not_told(store, validation):
    found = run(store, validation, **TARGET, target_l0=2.0, training=LONG)
    assert found.facts()["wrong"] is None
    assert found.at.curve[-1]["validation_l0"] == pytest.approx(2.0, rel=0.25)


@pytest.mark.parametrize("architecture", kinds("saes"))
def test_that_no_latent_is_active_at_the_end_is_told(store, architecture):
    more = {"k": 3} if "k" in kinds("saes")[architecture].model_fields else {}
    found, source, batches = made(store, architecture=architecture, **more, training={**TRAINING, "lr": 1e-9})
    with torch.no_grad():
        for name in found.sae._BIASES:
            getattr(found.sae, name).sub_(1e4)
    train({"sae": found}, source, batches)
    assert found.facts()["wrong"] == "L0 is 0 at the end: no latent is active"


@pytest.fixture
def far(make_store):
    """Rows whose squared mean is twenty-five times their variance."""
    x = rows(600)
    x = x - x.mean(0)
    offset = np.random.default_rng(5).normal(size=8)
    return make_store(x + offset / np.linalg.norm(offset) * 5 * x.var(0).sum() ** 0.5, chunk_rows=50, shard_rows=100)


@pytest.mark.parametrize("architecture", kinds("saes"))
def test_defaults_withstand_a_mean_far_larger_than_the_variance(far, architecture):
    spec = {"architecture": architecture, **({"k": 4} if "k" in kinds("saes")[architecture].model_fields else {})}
    found = run(far, **spec, training={**TRAINING, "epochs": 20})
    assert found.at.curve[-1]["fve"] > 0.6
    assert found.at.curve[-1]["dead"] < 0.3
    if architecture == "jumprelu":
        inside = found.data.inputs.apply(torch.from_numpy(far["x"].read(0, 600)))
        fresh, *_ = made(far, **spec)
        assert (fresh.sae.encode(inside) != 0).double().mean().item() == pytest.approx(0.16, abs=0.06)
        assert 0.5 < found.at.curve[-1]["l0"] < 12


def test_a_held_out_loss_that_is_not_finite_is_divergence(store, validation):
    found, source, batches = made(store, validation, **TOPK)
    found.held_out.measure = lambda sae: {"validation_fve": float("-inf")}
    train({"sae": found}, source, batches)
    assert "held-out rows is not finite" in found.facts()["wrong"]
    json.dumps(found.facts(), allow_nan=False)


def test_an_l0_that_nothing_should_move_is_not_told(store):
    training = {**TRAINING, "lr": 1e-9, "when_unmoved": "stop"}
    assert run(store, **{**RELU, "l1": 0.0}, training=training).facts()["wrong"] is None
    assert run(store, **TOPK, training=training).facts()["wrong"] is None
    assert run(store, **{**RELU, "l1": 0.5}, training={**TRAINING, "when_unmoved": "stop"}).facts()["wrong"] is None


def test_the_curve_goes_to_parquet_with_all_its_names(store, tmp_path):
    Curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "auxk": 0.5}]).write(tmp_path / "curve.parquet")
    assert pq.read_table(tmp_path / "curve.parquet").to_pydict() == {"step": [1, 2], "loss": [2.0, 1.0], "auxk": [None, 0.5]}


def test_log_sparsity_is_the_log_of_how_often_a_latent_fires(build, store):
    sae, _ = build(width=8, **TOPK)
    with torch.no_grad():
        sae.b_enc[0] = -1e6
        f = sae.encode(torch.from_numpy(rows().astype(np.float32)))
    found = log_sparsity(sae, store["x"], batch=70)
    expected = [log10((f[:, m] != 0).sum().item() / 300 + 1e-10) for m in range(20)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == -10
