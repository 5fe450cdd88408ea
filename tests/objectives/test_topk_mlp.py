"""Top-K MLP: exactly k units flow on, in training and ever after."""

import pytest
import torch

from pipeline.models.hooks import untouched
from pipeline.study.objectives.topk_mlp import TopKMLP

HOOK = "blocks.1.mlp_hidden"


@pytest.fixture
def quarter(one):
    return one("topk-mlp", ratio=0.25, layers=[1])  # 5 of 20


@pytest.mark.parametrize(
    ("ratio", "width", "k"), [(0.1, 1536, 154), (0.25, 1536, 384), (0.5, 1536, 768), (1, 7, 7), (0.1, 5, 1), (0.3, 5, 2)]
)
def test_the_share_is_rounded_to_the_nearest_number_of_units(ratio, width, k):
    spec = TopKMLP.model_validate({"objective": "topk-mlp", "ratio": ratio})
    assert spec.k(width) == k
    assert spec.problems(1, width) == []


def test_less_than_half_a_unit_is_a_problem():
    assert TopKMLP.model_validate({"objective": "topk-mlp", "ratio": 0.02}).problems(1, 20) == [
        "ratio: 0.02 of 20 units is less than half a unit"
    ]


def test_the_largest_absolute_values_flow_on_and_only_they_have_a_gradient(quarter):
    value = torch.arange(20.0).sub(9.5).repeat(2, 3, 1).requires_grad_()  # -9.5 to 9.5
    out = quarter(HOOK, value, untouched)
    kept = torch.tensor([0, 1, 18, 19])
    assert (out != 0).sum(-1).eq(5).all()
    assert torch.equal(out[..., kept], value[..., kept])
    out.square().sum().backward()
    assert torch.equal(value.grad, 2 * out)
    assert torch.equal(value.grad != 0, out != 0)


def test_ties_keep_exactly_k(quarter):
    for value in (torch.ones(2, 3, 20), torch.ones(2, 3, 20, dtype=torch.bfloat16), torch.full((1, 1, 20), -2.0)):
        out = quarter(HOOK, value, untouched)
        assert (out != 0).sum(-1).eq(5).all()
        assert out.dtype == value.dtype


def test_what_is_not_kept_is_plain_zero(quarter):
    out = quarter(HOOK, torch.tensor([[[float("inf")] * 5 + [-1e-9] * 15]]), untouched)
    assert torch.equal(out, torch.tensor([[[float("inf")] * 5 + [0.0] * 15]]))
    assert not out[..., 5:].signbit().any()


def test_other_hooks_and_layers_pass(quarter):
    value = torch.randn(1, 2, 20)
    for name in ("blocks.0.mlp_hidden", "blocks.1.mlp_out"):
        assert quarter(name, value, untouched) is value


def test_it_acts_in_training_and_in_evaluation_and_has_no_term(made, seen, ids):
    model, (objective,) = made({"objective": "topk-mlp", "ratio": 0.5, "layers": [0, 2]})
    for mode in (model.train(), model.eval()):
        found = seen(mode, ids).at
        assert [int((found[f"blocks.{n}.mlp_hidden"] != 0).sum(-1).max()) for n in range(3)] == [10, 20, 10]
    assert objective.term({}, ids.flatten()) is None
    assert objective.resume_state() == {} == dict(objective.state_dict())


def test_its_gradient_agrees_with_differences(quarter, random):
    value = random(3, 20)[0][None].requires_grad_()
    assert torch.autograd.gradcheck(lambda value: quarter(HOOK, value, untouched), value)
