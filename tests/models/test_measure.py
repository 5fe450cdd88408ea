"""What hidden units do on a fixed pool of tokens, against plain sums."""

import numpy as np
import pytest
import torch

from pipeline.models.examples import examples
from pipeline.models.hooks import record
from pipeline.models.measure import units, watched

SPEC = {"architecture": "gpt", "layers": 2, "width": 12, "heads": 3, "mlp_width": 20, "context": 8, "training": {"batch": 3}}
SPECIAL = 9


@pytest.fixture
def split(make_tokens):
    ids = np.random.default_rng(3).integers(0, 10, size=200)
    found = examples(make_tokens(ids, 10), "train", 8)
    found.special = torch.tensor([SPECIAL])
    return found


def pool(settings, count, below=0.01):
    return settings.model_copy(update={"pool": settings.pool.model_copy(update={"tokens": count, "inactive_below": below})})


def by_hand(model, split, count, below):
    """Rows of the first `count` tokens that are not special."""
    ids = np.asarray(split.ids)[: len(split.ids) - 1]
    keep = np.flatnonzero(ids != SPECIAL)[:count]
    found = [record(model, batch.inputs, ["blocks.1.mlp_hidden", "blocks.1.mlp_out"]) for batch in split.batches(3)]
    hidden, out = (
        torch.cat([one[f"blocks.1.{hook}"].flatten(0, 1) for one in found]).detach().numpy()[keep] for hook in ("mlp_hidden", "mlp_out")
    )
    active = np.abs(hidden) >= below
    entropies = []
    for unit in np.abs(out).T.astype(float):
        mass = np.array([unit[ids[keep] == token].sum() for token in np.unique(ids[keep])])
        share = mass / mass.sum()
        entropies.append(-(share[share > 0] * np.log(share[share > 0])).sum())
    return {
        "sparsity": 1 - active.mean(),
        "rare": (active.mean(0) < 0.01).mean(),
        "never": (~active.any(0)).mean(),
        "polysemanticity": np.mean(entropies),
    }


@pytest.mark.parametrize(("count", "below"), [(50, 0.01), (101, 0.3), (10_000, 0.1)])
def test_they_are_plain_sums_over_the_pool(build, split, count, below):
    model, settings = build({"vocabulary": 10}, **SPEC)
    found = units(model, pool(settings, count, below), {"train": split})
    expected = by_hand(model, split, count, below)
    available = int((np.asarray(split.ids)[:-1] != SPECIAL).sum())
    assert found["tokens"] == min(count, available)
    assert found["types"] == 9
    for name, value in expected.items():
        assert found[name][1] == pytest.approx(value, rel=1e-5, abs=1e-9)


def test_the_batch_decides_nothing(build, split):
    model, settings = build({"vocabulary": 10}, **SPEC)
    first = watched(pool(settings, 77), {"train": split}).measure(model)
    other = pool(settings.model_copy(update={"training": settings.training.model_copy(update={"batch": 7})}), 77)
    second = watched(other, {"train": split}).measure(model)
    for name, values in first.items():
        assert values == pytest.approx(second[name], rel=1e-5)


def test_a_unit_that_is_never_on_is_rare_and_never(build, split):
    model, settings = build({"vocabulary": 10}, **SPEC)
    with torch.no_grad():
        model.blocks[0].mlp_in.weight[:5] = 0  # GELU(0) is 0
    found = units(model, pool(settings, 100, 0.0), {"train": split})
    assert found["never"] == [0.25, 0.0]
    assert found["rare"] == [0.25, 0.0]
    assert found["sparsity"] == pytest.approx([0.25, 0.0])
