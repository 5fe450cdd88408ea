"""Anti-polysemantic: entropy of each unit over token types, by hand, by loops, and its gradient."""

from math import log

import numpy as np
import pytest
import torch

HOOK = "blocks.0.mlp_out"


@pytest.fixture
def measure(one):
    objective = one("anti-polysemantic", layers=[0])
    return lambda values_nD, ids_n: objective.term({HOOK: values_nD}, ids_n)


def by_loops(a: np.ndarray, ids: np.ndarray) -> float:
    found = []
    for unit in range(a.shape[1]):
        mass = {}
        for token, value in zip(ids, a[:, unit], strict=True):
            mass[token] = mass.get(token, 0) + abs(value)
        total = sum(mass.values())
        found.append(-sum(m / total * log(m / total) for m in mass.values() if m > 0) if total else 0)
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("ids", "values", "expected"),
    [
        ([7, 7, 7], [1, 2, 3], 0),  # one type
        ([7, 9], [1, -1], log(2)),  # absolute values count
        ([7, 9, 7, 5], [1, 4, 1, 2], 1.5 * log(2)),  # shares 1/4, 1/2, 1/4
        ([7, 9, 5], [3, 0, 0], 0),  # silent at the other types
    ],
)
def test_entropies_by_hand_in_nats(measure, ids, values, expected):
    term = measure(torch.tensor(values, dtype=torch.float64)[:, None], torch.tensor(ids))
    assert term.item() == pytest.approx(expected, abs=1e-12)


def test_it_is_the_mean_over_units(measure):
    both = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert measure(both, torch.tensor([3, 4])).item() == pytest.approx(log(2) / 2)


def test_it_agrees_with_loops_and_the_gradient_with_differences(measure, random):
    a, ids = random(14, 5)
    assert measure(a, ids).item() == pytest.approx(by_loops(a.numpy(), ids.numpy()), rel=1e-12)
    assert torch.autograd.gradcheck(lambda a: measure(a, ids), a.requires_grad_())


def test_neither_the_scale_of_a_unit_nor_the_order_of_tokens_nor_the_names_of_types_count(measure, random):
    a, ids = random(30, 4)
    expected = pytest.approx(measure(a, ids).item(), rel=1e-12)
    assert measure(a * torch.tensor([1e-9, -1, 1e9, 0.1]), ids).item() == expected
    order = torch.randperm(30)
    assert measure(a[order], ids[order]).item() == expected
    assert measure(a, 50256 - 1000 * ids).item() == expected


def test_silent_units_and_zeros_have_a_gradient_of_zero(measure, random):
    a, ids = random(14, 4)
    a[:, 1] = 0
    a[ids == 2, 3] = 0  # nothing at one type
    a[0, 0] = 0
    a.requires_grad_()
    term = measure(a, ids)
    assert term.item() == pytest.approx(by_loops(a.detach().numpy(), ids.numpy()), rel=1e-12)
    term.backward()
    assert a.grad.isfinite().all()
    assert (a.grad[a == 0] == 0).all()
    assert (a.grad[:, 0][a[:, 0] != 0] != 0).any()


def test_descent_makes_units_answer_to_fewer_types(measure, random):
    a, ids = random(40, 4)
    a.requires_grad_()
    before = measure(a, ids).item()
    optimizer = torch.optim.Adam([a], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        measure(a, ids).backward()
        optimizer.step()
    assert measure(a, ids).item() < 0.5 * before
