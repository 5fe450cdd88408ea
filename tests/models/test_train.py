"""Training of models: it learns, it is a function of (dataset, spec, seed), and it measures what it says."""

import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.models.measure import measure
from pipeline.models.train import Run, train

MLP = {
    "architecture": "mlp",
    "hidden": [16, 16],
    "batch_norm": [1],
    "training": {"epochs": 12, "batch": 20, "lr": 0.01, "validate_every": 5},
}
GPT = {
    "architecture": "gpt", "layers": 1, "width": 16, "heads": 2, "context": 8, "dropout": 0.1,
    "training": {"steps": 30, "batch": 4, "lr": 0.01, "validate_every": 12, "schedule": {"warmup": 5}},
}  # fmt: skip


@pytest.fixture
def table(make_table):
    rows = np.random.default_rng(0).normal(size=(90, 3))
    return make_table(rows, rows[:, 0] - 2 * rows[:, 1])


@pytest.fixture
def text(make_tokens):
    return make_tokens(np.tile([1, 2, 3, 4, 5], 60), 8)


def run(spec: dict, dataset, seed: int = 0, noise: int = 0):
    """A trained model and its curve."""
    torch.manual_seed(noise)
    model, settings = checkpoint.build({**spec, "seed": seed}, dataset.facts)
    split = examples(dataset, "train", spec.get("context"))
    torch.manual_seed(noise + 1)
    return model, train(Run(model, settings, split, split)).curve, split


def bits(model) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


@pytest.mark.parametrize("kind", ["table", "text"])
def test_it_learns(request, kind):
    dataset = request.getfixturevalue(kind)
    spec = MLP if kind == "table" else GPT
    before, settings = checkpoint.build(spec, dataset.facts)
    split = examples(dataset, "train", spec.get("context"))
    model, curve, _ = run(spec, dataset)
    assert measure(model, split, 20)["loss"] < 0.3 * measure(before, split, 20)["loss"]
    assert curve.rows[-1]["train_loss"] < curve.rows[0]["train_loss"]
    assert settings.seed == 0


@pytest.mark.parametrize("kind", ["table", "text"])
def test_equal_runs_end_in_equal_bytes_whatever_ran_before(request, kind):
    dataset = request.getfixturevalue(kind)
    spec = MLP if kind == "table" else GPT
    (one, curve, _), (two, again, _), (other, _, _) = run(spec, dataset), run(spec, dataset, noise=9), run(spec, dataset, seed=1)
    assert bits(one) == bits(two)
    assert curve.rows == again.rows
    assert bits(one) != bits(other)


def test_the_curve_has_a_row_at_every_measurement_and_at_the_end(table, text):
    model, curve, split = run(MLP, table)
    assert [row["step"] for row in curve.rows] == [25, 50, 60]  # 5 steps an epoch, 12 epochs, every fifth
    assert curve.rows[-1]["validation_loss"] == measure(model, split, 20)["loss"]
    model, curve, split = run(GPT, text)
    assert [row["step"] for row in curve.rows] == [12, 24, 30]
    assert curve.rows[-1]["validation_loss"] == measure(model, split, 20)["loss"]


@pytest.mark.parametrize("kind", ["table", "text"])
def test_training_losses_are_means_of_the_steps_since_the_last_row(request, kind, monkeypatch):
    dataset = request.getfixturevalue(kind)
    spec = MLP if kind == "table" else GPT
    model, settings = checkpoint.build(spec, dataset.facts)
    losses, steps = model.losses, []
    monkeypatch.setattr(model, "losses", lambda output, target: steps.append(losses(output, target)) or steps[-1])
    split = examples(dataset, "train", spec.get("context"))
    curve = train(Run(model, settings, split, None)).curve
    assert len(steps) == curve.rows[-1]["step"]
    done = 0
    for row in curve.rows:
        assert row["train_loss"] == pytest.approx(np.mean([one.mean().item() for one in steps[done : row["step"]]]), rel=1e-5)
        done = row["step"]


@pytest.mark.parametrize("kind", ["table", "text"])
def test_measuring_on_the_way_does_not_end_training_mode(request, kind, monkeypatch):
    """Dropout and batch norm go on as before, and in measuring they rest."""
    dataset = request.getfixturevalue(kind)
    spec = MLP if kind == "table" else GPT
    model, settings = checkpoint.build(spec, dataset.facts)
    losses, modes = model.losses, []
    monkeypatch.setattr(model, "losses", lambda *given: modes.append((torch.is_grad_enabled(), model.training)) or losses(*given))
    split = examples(dataset, "train", spec.get("context"))
    train(Run(model, settings, split, split))
    assert set(modes) == {(True, True), (False, False)}


def test_a_learning_rate_that_breaks_it_is_told(table):
    with pytest.raises(UserError, match=r"training diverged: \w+ is not finite after step 25; lower training\.lr"):
        run({**MLP, "training": {**MLP["training"], "lr": 1e30}}, table)


def test_a_last_step_that_breaks_it_is_told(table):
    """No training loss follows it; the weights it leaves are not numbers all the same."""
    spec = {**MLP, "batch_norm": [], "training": {"epochs": 1, "batch": 90, "lr": 1e30}}
    with pytest.raises(UserError, match=r"training diverged"):
        run(spec, table)


def test_no_batch_of_batch_norm_is_a_single_row(make_table):
    """PyTorch refuses one row. Equal batches of at most 3 have at least 2; a batch of 2 could leave an odd row alone."""
    for rows in range(3, 12):
        run({**MLP, "training": {"epochs": 1, "batch": 3}}, make_table(np.ones((rows, 3)), np.ones(rows)))
    with pytest.raises(ValidationError, match="at least 3 rows"):
        run({**MLP, "training": {"epochs": 1, "batch": 2}}, make_table(np.ones((31, 3)), np.ones(31)))


def test_measures_are_means_over_all_rows_and_rounding_is_counted(make_table):
    rows = np.random.default_rng(1).integers(0, 10, size=(600, 2)).astype(float)
    target = rows[:, 0] + (np.arange(600) % 3 == 0)
    model, _ = checkpoint.build({"architecture": "mlp", "hidden": [1], "batch_norm": []}, {"width": 2})
    with torch.no_grad():  # 1.04 x the first number: within a half of it
        for name, value in {
            "linear.0.weight": [[1.04, 0.0]],
            "linear.0.bias": [0.0],
            "output.weight": [[1.0]],
            "output.bias": [0.0],
        }.items():
            model.state_dict()[name].copy_(torch.tensor(value))
    found = measure(model, examples(make_table(rows, target), "train", None), 70)
    assert found["rounded_accuracy"] == 400 / 600
    assert found["positions"] == 600
    assert found["loss"] == pytest.approx(np.mean((1.04 * rows[:, 0] - target) ** 2), rel=1e-5)


def test_token_losses_are_means_over_positions_and_not_over_batches(make_tokens):
    """The last window is shorter; every position of it counts as much as any other."""
    ids = np.random.default_rng(2).integers(0, 5, size=4 * 8 + 4)
    dataset = make_tokens(ids, 5)
    model, _ = checkpoint.build(GPT, dataset.facts)
    found = measure(model, examples(dataset, "train", 8), 3)
    losses = []
    with torch.no_grad():
        for start in range(0, 35, 8):
            window = torch.from_numpy(ids[start : start + 9])
            logits = model(window[None, :-1])[0].double()
            losses += (logits.logsumexp(-1) - logits[torch.arange(len(window) - 1), window[1:]]).tolist()
    assert found["positions"] == len(losses) == 35
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_measuring_changes_nothing(table):
    model, _, split = run(MLP, table)
    before = bits(model)
    measure(model, split, 20)
    assert bits(model) == before


def test_a_saved_model_is_the_same_model(table, tmp_path):
    model, _, split = run(MLP, table)
    spec = {**MLP, "seed": 0}
    with publishing(tmp_path / "model", "model", spec, {}) as draft:
        checkpoint.save(draft, model, spec, table.facts)
    artifact = Artifact.open(tmp_path / "model" / MANIFEST)
    loaded = checkpoint.load(artifact)
    assert bits(loaded) == bits(model)
    assert torch.equal(loaded(split.rows), model.eval()(split.rows))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert artifact.facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert load_file(tmp_path / "model/model.safetensors").keys() == model.state_dict().keys()


def noisy(make_tokens):
    """Random tokens: the longer it trains on them, the worse it does on others."""
    generator = np.random.default_rng(0)
    return [examples(make_tokens(generator.integers(0, 12, size=200), 12, name), "train", 8) for name in ("train", "other")]


OVERFIT = {**GPT, "dropout": 0.0, "training": {**GPT["training"], "steps": 200, "validate_every": 10, "schedule": {"shape": "constant"}}}


def overfitted(make_tokens, **training):
    model, settings = checkpoint.build({**OVERFIT, "training": {**OVERFIT["training"], **training}}, {"vocabulary": 12})
    train_split, other = noisy(make_tokens)
    return model, train(Run(model, settings, train_split, other)), other


def test_the_best_weights_are_those_of_the_lowest_validation_loss(make_tokens):
    model, result, other = overfitted(make_tokens)
    losses = {row["step"]: row["validation_loss"] for row in result.curve.rows}
    assert result.best_step == min(losses, key=losses.get) < 200
    model.load_state_dict(result.best)
    assert measure(model, other, 4)["loss"] == losses[result.best_step]


def test_early_stopping_waits_as_long_as_it_is_told(make_tokens):
    _, result, _ = overfitted(make_tokens, stop_after=3)
    assert result.curve.rows[-1]["step"] == result.best_step + 3 * 10 < 200


def test_without_validation_there_is_no_best(table):
    model, settings = checkpoint.build(MLP, table.facts)
    assert train(Run(model, settings, examples(table, "train", None), None)).best is None


def test_parts_of_a_batch_add_up_to_it(make_tokens):
    def weights(accumulate):
        spec = {**OVERFIT, "training": {**OVERFIT["training"], "steps": 20, "batch": 6, "precision": "float64", "accumulate": accumulate}}
        model, settings = checkpoint.build(spec, {"vocabulary": 12})
        model.double()
        result = train(Run(model, settings, noisy(make_tokens)[0], None))
        return torch.cat([p.flatten() for p in model.parameters()]), result.curve.rows[-1]

    whole, row = weights(1)
    for accumulate in (2, 3, 6):
        parts, other = weights(accumulate)
        assert (parts - whole).abs().max() < 1e-9
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-12)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-9)


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32(make_tokens):
    exact, _, _ = overfitted(make_tokens, steps=20)
    model, result, _ = overfitted(make_tokens, steps=20, precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    difference = max((a - b).abs().max().item() for a, b in zip(model.parameters(), exact.parameters(), strict=True))
    assert 0 < difference < 0.1
    assert result.curve.rows[-1]["train_loss"] < 2.6


def test_plateau_lowers_the_learning_rate_when_the_loss_rises(make_tokens):
    _, result, _ = overfitted(make_tokens, schedule={"shape": "plateau", "patience": 1, "factor": 0.5})
    rates = [row["lr"] for row in result.curve.rows]
    assert rates[0] == 0.01
    assert sorted(set(rates), reverse=True)[:3] == [0.01, 0.005, 0.0025]


def test_the_curve_names_what_was_measured(make_tokens):
    _, result, _ = overfitted(make_tokens, steps=20)
    row = result.curve.rows[-1]
    assert row["validation_perplexity"] == pytest.approx(np.exp(row["validation_loss"]))
    assert row["grad_norm"] > 0
    assert {"sparsity_0", "rare_0", "never_0", "polysemanticity_0"} <= row.keys()
    times = result.times.rows
    assert [one["step"] for one in times] == [10, 20]
    assert all(one["positions_per_second"] > 0 for one in times)
    assert times[1]["seconds"] > times[0]["seconds"] > 0


def test_gradient_norms_are_means_of_those_before_clipping(make_tokens):
    model, settings = checkpoint.build({**OVERFIT, "training": {**OVERFIT["training"], "steps": 1, "clip": 1e-3}}, {"vocabulary": 12})
    split = noisy(make_tokens)[0]
    inputs, targets = next(split.epoch(0, 4, 0))
    gradients = torch.autograd.grad(model.losses(model(inputs), targets).mean(), list(model.parameters()))
    expected = torch.cat([one.flatten() for one in gradients]).norm().item()
    assert train(Run(model, settings, split, None)).curve.rows[0]["grad_norm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_forward_trains_the_same_weights(make_tokens):
    eager, _, _ = overfitted(make_tokens, steps=5)
    compiled, _, _ = overfitted(make_tokens, steps=5, compile=True)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for name, value in eager.state_dict().items():
        assert torch.allclose(compiled.state_dict()[name], value, atol=1e-4), name
