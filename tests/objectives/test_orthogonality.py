"""Orthogonality: mean |cosine| between units, by hand, by loops, and its gradient."""

from itertools import permutations
from math import sqrt

import numpy as np
import pytest
import torch

HOOK = "blocks.0.mlp_out"


@pytest.fixture
def measure(one):
    objective = one("orthogonality", layers=[0])
    return lambda values_nD: objective.term({HOOK: values_nD}, torch.zeros(len(values_nD), dtype=torch.int64))


def by_loops(a: np.ndarray) -> float:
    found = [a[:, i] @ a[:, j] / np.sqrt((a[:, i] ** 2).sum() * (a[:, j] ** 2).sum()) for i, j in permutations(range(a.shape[1]), 2)]
    return float(np.mean(np.abs(found)))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([[1, 0], [0, 1]], 0),
        ([[1, 2], [-2, -4]], 1),  # opposite is as bad as equal
        ([[1, 0], [1, 1]], 1 / sqrt(2)),
        ([[3, 0, 0], [0, 5, 0], [2, 0, 2]], (2 / sqrt(2)) / 6),  # one pair of three, at 45 degrees, counted in both orders
    ],
)
def test_cosines_by_hand(measure, columns, expected):
    assert measure(torch.tensor(columns, dtype=torch.float64).T).item() == pytest.approx(expected, abs=1e-12)


def test_units_are_compared_and_not_tokens(measure):
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # two tokens alike, two units at right angles
    assert measure(tokens).item() == 0


def test_the_published_mean_over_all_entries_is_smaller_by_one_part_in_the_width(measure, random):
    a, _ = random(40, 6)
    unit = a / a.norm(dim=0)
    published = (unit.T @ unit - torch.eye(6, dtype=torch.float64)).abs().mean()
    assert published.item() == pytest.approx(5 / 6 * measure(a).item(), rel=1e-12)


def test_it_agrees_with_loops_and_the_gradient_with_differences(measure, random):
    a, _ = random(9, 7)
    assert measure(a).item() == pytest.approx(by_loops(a.numpy()), rel=1e-12)
    assert torch.autograd.gradcheck(measure, a.requires_grad_())


def test_neither_the_scale_and_sign_of_a_unit_nor_the_order_of_tokens_counts(measure, random):
    a, _ = random(30, 5)
    expected = pytest.approx(measure(a).item(), rel=1e-12)
    assert measure(a * torch.tensor([1e-6, -1, 1e6, 3, -0.1])).item() == expected
    assert measure(a[torch.randperm(30)]).item() == expected


def test_a_silent_unit_is_orthogonal_to_all_and_gets_no_gradient(measure, random):
    a, _ = random(9, 4)
    a[:, 2] = 0
    a.requires_grad_()
    term = measure(a)
    assert term.item() == pytest.approx(by_loops(a.detach().numpy()[:, [0, 1, 3]]) * 6 / 12, rel=1e-12)
    term.backward()
    assert (a.grad[:, 2] == 0).all()
    assert (a.grad[:, [0, 1, 3]] != 0).any() and a.grad.isfinite().all()


def test_all_units_silent_is_nothing(measure):
    a = torch.zeros(5, 3, requires_grad=True)
    term = measure(a)
    term.backward()
    assert term.item() == 0
    assert (a.grad == 0).all()


def test_descent_makes_units_orthogonal(measure, random):
    a = random(20, 4)[0].requires_grad_()
    before = measure(a).item()
    optimizer = torch.optim.Adam([a], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        measure(a).backward()
        optimizer.step()
    assert measure(a).item() < 0.2 * before
