"""The multilayer perceptron, against the same formulas written out in numpy."""

import numpy as np
import torch

from pipeline.models import checkpoint
from pipeline.study.models.mlp import MLP


def test_the_published_size():
    model, _ = checkpoint.build({"architecture": "mlp"}, {"width": 10})
    assert sum(p.numel() for p in model.parameters()) == 267_521
    assert [tuple(linear.weight.shape) for linear in model.linear] == [(256, 10), (512, 256), (256, 512)]


def test_hidden_layers_are_linear_then_batch_norm_where_named_then_relu(build):
    model, _ = build({"width": 3}, architecture="mlp", hidden=[4, 5, 6], batch_norm=[2])
    rows = np.random.default_rng(0).normal(size=(7, 3))
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    seen = {}
    output = model(torch.from_numpy(rows).float(), lambda name, value: seen.setdefault(name, value))
    x = rows
    for n in (1, 2, 3):
        x = x @ w[f"linear.{n - 1}.weight"].T + w[f"linear.{n - 1}.bias"]
        if n == 2:
            x = (x - w["norm.2.running_mean"]) / np.sqrt(w["norm.2.running_var"] + 1e-5) * w["norm.2.weight"] + w["norm.2.bias"]
        x = np.maximum(x, 0)
        np.testing.assert_allclose(seen[f"layer{n}"].detach().numpy(), x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.detach().numpy(), x @ w["output.weight"][0] + w["output.bias"], rtol=1e-4, atol=1e-5)
    assert not [name for name in w if name.startswith(("norm.1", "norm.3"))]


def test_hooks_have_the_widths_that_the_study_is_told(build):
    model, settings = build({"width": 3}, architecture="mlp", hidden=[4, 5, 6])
    seen = {}
    model(torch.zeros(2, 3), lambda name, value: seen.setdefault(name, value))
    assert {name: value.shape[1] for name, value in seen.items()} == settings.hooks() == {"layer1": 4, "layer2": 5, "layer3": 6}


def test_the_loss_is_the_squared_error_of_each_row(build):
    model, _ = build({"width": 3}, architecture="mlp")
    assert model.losses(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([1.0, 4.0, 2.0])).tolist() == [0.0, 4.0, 9.0]


def test_weights_are_a_function_of_the_seed_and_of_nothing_else():
    def weights(seed, noise):
        torch.manual_seed(noise)
        model, _ = checkpoint.build({"architecture": "mlp", "seed": seed}, {"width": 3})
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(1, 5), weights(1, 6))
    assert not torch.equal(weights(1, 5), weights(2, 5))


def test_a_run_is_so_many_epochs_and_the_last_batch_may_be_small():
    spec = MLP.model_validate({"architecture": "mlp", "dataset": "d", "training": {"epochs": 3, "batch": 40, "validate_every": 2}})
    assert spec.length(100) == (9, 6)
    assert spec.length(120) == (9, 6)
    assert spec.length(121) == (12, 8)
