"""Training of models: it learns, it is a function of (dataset, spec, seed), and it measures what it says."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact, publishing
from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.models.train import measure, train

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
    return model, train(model, settings, split, split), split


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
    curve = train(model, settings, split, None)
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
    train(model, settings, split, split)
    assert set(modes) == {(True, True), (False, False)}


def test_a_learning_rate_that_breaks_it_is_told(table):
    with pytest.raises(UserError, match=r"training diverged: the loss is .* after step 25; lower training\.lr"):
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
