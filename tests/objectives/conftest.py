"""Objectives as a model's settings make them, and a step of training as plain as can be."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.models import checkpoint
from pipeline.objectives.base import objectives

SIZES = {"architecture": "gpt", "layers": 3, "width": 12, "heads": 3, "mlp_width": 20, "context": 8}


@pytest.fixture
def made():
    """A small language model and its objectives: `made({"objective": "l1"}, ..., seed=1)`."""

    def made(*listed: dict, **settings):
        spec = {**SIZES, "objectives": list(listed), **settings}
        model, parsed = checkpoint.build(spec, {"vocabulary": 11})
        return model, objectives(parsed, model)

    return made


@pytest.fixture
def one(made):
    """A single objective: `one("l1", layers=[0])`."""
    return lambda kind, **settings: made({"objective": kind, **settings})[1][0]


@pytest.fixture
def ids() -> torch.Tensor:
    """Four sequences of eight tokens."""
    return torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def seen():
    """Every value that a tap sees in a forward, and the model's output: `seen(model, ids)`."""

    def seen(model, ids):
        found = {}
        output = model(ids, lambda name, value: found.setdefault(name, value))
        return SimpleNamespace(**{"at": found, "output": output})

    return seen


@pytest.fixture
def term_of(seen):
    """The term of an objective on all tokens of a batch: `term_of(model, objective, ids)`."""

    def term_of(model, objective, ids):
        found = seen(model, ids).at
        values = {hook: found[hook].flatten(0, 1) for hook in objective.hooks} if objective.reads else {}
        return objective.term(values, ids.flatten())

    return term_of


@pytest.fixture
def random():
    """Activations of some tokens: `random(n, width)`, float64, and their ids."""

    def random(n: int, width: int, types: int = 5, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, width, generator=generator, dtype=torch.float64), torch.randint(types, (n,), generator=generator)

    return random
