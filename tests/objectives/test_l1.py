"""L1 on hidden units."""

import pytest
import torch


def test_it_is_the_mean_absolute_value_over_tokens_units_and_layers(one):
    objective = one("l1", layers=[0, 2])
    assert objective.hooks == ["blocks.0.mlp_hidden", "blocks.2.mlp_hidden"]
    values = {"blocks.0.mlp_hidden": torch.tensor([[1.0, -3.0]]), "blocks.2.mlp_hidden": torch.tensor([[0.0, 2.0]])}
    assert objective.term(values, torch.tensor([5])).item() == (2 + 1) / 2


def test_its_gradient(one, random):
    objective = one("l1", layers=[0])
    a, ids = random(6, 4)
    assert torch.autograd.gradcheck(lambda a: objective.term({"blocks.0.mlp_hidden": a}, ids), a.requires_grad_())


def test_the_default_weight_is_the_middle_of_the_published_ones(one):
    assert one("l1").weight == pytest.approx(1e-3)
