"""L0 gates: hard concrete samples and their expectation, the annealed temperature, exact zeros at inference."""

from math import exp, log

import numpy as np
import pytest
import torch

from pipeline.models.hooks import untouched
from pipeline.objectives.l0_gates import at_inference

HOOK = "blocks.0.mlp_hidden"


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


@pytest.fixture
def gates(one):
    """Gates of one layer whose log alphas are given."""

    def gates(*log_alphas: float, **settings):
        objective = one("l0-gates", layers=[0], **settings).train()
        with torch.no_grad():
            objective.log_alpha[0].copy_(torch.tensor(log_alphas))
        return objective

    return lambda *given, **settings: gates(*(given or [0.0] * 20), **settings)


def samples(objective, sequences: int = 20_000) -> torch.Tensor:
    """Gates of many sequences (sequences, 20)."""
    torch.manual_seed(3)
    with torch.no_grad():
        return objective(HOOK, torch.ones(sequences, 1, 20), untouched)[:, 0]


def test_a_gate_opens_as_often_as_the_term_says(gates):
    log_alphas = np.linspace(-4, 4, 20)
    objective = gates(*log_alphas)
    for share in (0.0, 0.5):
        objective.begin_step(share)
        temperature = 0.1**share
        expected = [sigmoid(a - temperature * log(0.1 / 1.1)) for a in log_alphas]
        assert objective.term({}, torch.zeros(3)).item() == pytest.approx(np.mean(expected), rel=1e-5)
        often = (samples(objective) > 0).double().mean(0)
        np.testing.assert_allclose(often, expected, atol=4 * 0.5 / 20_000**0.5)


def test_samples_are_stretched_and_clamped_logistic_noise(gates):
    objective = gates(*[0.7] * 20)
    objective.begin_step(0.25)
    found = np.sort(samples(objective).flatten().numpy())
    u = (np.arange(len(found)) + 0.5) / len(found)  # the gate grows with u: its quantiles are those of the formula
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + 0.7) / 0.1**0.25))
    np.testing.assert_allclose(found, np.clip(s * 1.2 - 0.1, 0, 1), atol=0.01)
    assert (found == 0).any() and (found == 1).any()


def test_the_temperature_falls_by_the_same_factor_in_each_step(gates):
    objective = gates()
    assert objective.temperature.item() == 1
    found = []
    for step in range(4):
        objective.begin_step(step / 4)
        found.append(objective.temperature.item())
    assert found == pytest.approx([1, 10**-0.25, 10**-0.5, 10**-0.75])
    other = gates(temperature_start=2, temperature_end=0.5)
    other.begin_step(0.5)
    assert other.temperature.item() == pytest.approx(1)


def test_at_inference_gates_are_exact_zeros_where_they_mostly_are(gates):
    threshold = log(0.1 / 1.1)
    objective = gates(*[threshold - 0.01] * 10, *[0.0] * 5, *[5.0] * 5).eval()
    objective.begin_step(0.9)
    value = torch.randn(2, 3, 20)
    out = objective(HOOK, value, untouched)
    assert (out[..., :10] == 0).all()
    assert torch.equal(out[..., 15:], value[..., 15:])
    torch.testing.assert_close(out[..., 10:15], 0.5 * value[..., 10:15])
    assert objective.tracked() == {"open": 0.5}
    assert at_inference(torch.tensor([threshold + 0.01])) > 0


def test_all_tokens_of_a_sequence_see_the_same_gates_and_other_sequences_others(gates):
    out = gates()(HOOK, torch.ones(2, 5, 20), untouched)
    assert (out == out[:, :1]).all()
    assert (out[0, 0] != out[1, 0]).any()


def test_samples_follow_torchs_generator(gates):
    objective, value = gates(), torch.ones(2, 5, 20)
    state = torch.get_rng_state()
    one, two = (objective(HOOK, value, untouched) for _ in range(2))
    torch.set_rng_state(state)
    assert torch.equal(objective(HOOK, value, untouched), one)
    assert not torch.equal(one, two)


def test_gates_and_values_have_the_gradient_that_differences_show(gates, random):
    objective = gates(*np.linspace(-2, 2, 20)).double()
    value = random(3, 20)[0][:, None].requires_grad_()

    def through(value, log_alpha):
        torch.manual_seed(0)
        return torch.func.functional_call(objective, {"log_alpha.0": log_alpha}, (HOOK, value, untouched))

    log_alpha = objective.log_alpha[0].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(through, (value, log_alpha))
    objective.term({}, torch.zeros(1)).backward()
    p = torch.sigmoid(log_alpha.detach() - log(0.1 / 1.1))
    torch.testing.assert_close(objective.log_alpha[0].grad, p * (1 - p) / 20)


def test_gates_begin_as_in_the_paper_and_are_part_of_the_model(made):
    model, (objective,) = made({"objective": "l0-gates", "layers": [0, 2]})
    assert [one.shape for one in objective.log_alpha] == [(20,), (20,)]
    assert all(one.abs().max() < 0.05 for one in objective.log_alpha)
    assert {name for name in model.state_dict() if "shaping" in name} == {"shaping.0.log_alpha.0", "shaping.0.log_alpha.1"}
    assert objective.resume_state() == {}
    assert made({"objective": "l0-gates", "layers": [0, 2]}, seed=1)[1][0].log_alpha[0][0] != objective.log_alpha[0][0]


def test_a_term_alone_closes_gates(made, seen, ids):
    model, (objective,) = made({"objective": "l0-gates", "layers": [1]})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        objective.term({}, ids).backward()
        optimizer.step()
    assert objective.tracked() == {"open": 0.0}
    found = seen(model.eval(), ids).at
    assert (found["blocks.1.mlp_hidden"] == 0).all()
    assert (found["blocks.0.mlp_hidden"] != 0).all()
