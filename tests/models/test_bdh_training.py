"""BDH in training: the gradients of the fused forward, dropout, shorter types."""

import pytest
import torch

from pipeline.models import bdh_parts, checkpoint
from pipeline.models.bdh_fused import fused
from pipeline.models.bdh_parts import Dropout, Plan, Rotation, Weights, frequencies

SMALL = {"architecture": "bdh", "layers": 3, "width": 8, "heads": 2, "multiplier": 6, "context": 8}


def model(dropout, **more):
    found, _ = checkpoint.build({**SMALL, "dropout": dropout, **more}, {"vocabulary": 11})
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(15)
    return found.double().train()


def text(*shape):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(3))


def seen(name, value):
    return value


def loss_and_gradients(network, ids, *tap):
    torch.manual_seed(5)
    logits = network(ids, *tap)
    network.zero_grad()
    network.losses(logits, ids.flip(1)).mean().backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("length", [1, 5, 8])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_autograd(monkeypatch, dropout, batch, length):
    monkeypatch.setattr(bdh_parts, "ROWS", 16)
    monkeypatch.setattr(bdh_parts, "BLOCK", 3)
    network, ids = model(dropout), text(batch, length)
    logits, found = loss_and_gradients(network, ids)
    same, wanted = loss_and_gradients(network, ids, seen)
    assert torch.equal(logits, same)
    assert length == 1 or all(value.abs().max() > 1e-6 for value in wanted.values())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_differences(dropout):
    torch.manual_seed(2)
    tensors = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (2, 4, 6), (2, 4, 6), (2, 6, 4))]
    plan = Plan(2, 2, 3, torch.float64, Rotation(frequencies(6), 3, torch.float64), Dropout(dropout, (2, 1, 1, 2)) if dropout else None)
    assert torch.autograd.gradcheck(lambda x, *weights: fused(x, Weights(*weights), plan, True), tensors)


def test_long_text_has_gradients_too():
    ids = text(2, 19)
    _, found = loss_and_gradients(model(0.0), ids)
    _, wanted = loss_and_gradients(model(0.0, context=32), ids)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_gradients_reach_a_hook_that_is_read():
    network, ids = model(0.3), text(2, 8)
    found = {}
    network(ids, lambda name, value: found.setdefault(name, value))
    found["blocks.1.xy_sparse"].sum().backward()
    assert network.encoder.grad.abs().max() > 0 and network.lm_head.grad is None


def test_dropout_is_drawn_from_the_global_generator_alone():
    network, ids = model(0.3), text(2, 8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = network(ids), network(ids)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(network(ids, seen), first)
    assert torch.equal(network(ids), second)
    network.eval()
    assert torch.equal(network(ids), network(ids))


def test_dropout_drops_its_share_of_neurons_and_makes_up_for_them():
    like = torch.empty(400, 999)
    dropout = Dropout(0.3, (2, 1))
    kept = dropout.kept((0, 0), like)
    assert kept.unique().tolist() == [0.0, 1.0] and kept.shape == like.shape
    assert kept.mean().item() == pytest.approx(0.7, abs=0.005)
    assert kept.mean(0).std().item() == pytest.approx((0.21 / 400) ** 0.5, rel=0.2)
    assert dropout.scale == pytest.approx(1 / 0.7, rel=1e-4)
    assert torch.equal(dropout.kept((0, 0), like), kept)
    assert (dropout.kept((1, 0), like) * kept).mean().item() == pytest.approx(0.49, abs=0.005)


def test_dropout_acts_after_the_hook():
    network, ids = model(0.5, layers=1), text(2, 8)
    found = []
    for _ in range(2):
        network(ids, lambda name, value: found.append(value) or value if name.endswith("xy_sparse") else value)
    assert torch.equal(found[0], found[1])


def test_bfloat16_is_the_same_looked_into_or_not_and_close_to_float32():
    network, ids = model(0.0).float(), text(3, 8)
    wanted, exact = loss_and_gradients(network, ids)
    with torch.autocast("cpu", torch.bfloat16):
        logits, found = loss_and_gradients(network, ids)
        same, other = loss_and_gradients(network, ids, seen)
    assert torch.equal(logits, same)
    assert (logits - wanted).norm() < 0.05 * wanted.norm()
    for name in exact:
        assert found[name].dtype == torch.float32
        assert (found[name] - exact[name]).norm() < 0.2 * exact[name].norm()
        assert (other[name] - exact[name]).norm() < 0.2 * exact[name].norm()


def test_a_tap_computes_in_the_callers_precision():
    """Objectives have float32 weights, which autocast alone brings together with a shorter type."""
    network, ids, dtypes = model(0.0).float(), text(1, 8), set()

    def tap(name, value):
        if name.endswith("x_sparse"):
            dtypes.update((value.dtype, (value @ torch.zeros(value.shape[2], 1)).dtype))
        return value

    with torch.autocast("cpu", torch.bfloat16):
        network(ids, tap)
    assert dtypes == {torch.bfloat16}


def test_a_frozen_model_needs_no_gradients():
    network, ids = model(0.0).eval().requires_grad_(False), text(1, 19)
    assert not network(ids).requires_grad
