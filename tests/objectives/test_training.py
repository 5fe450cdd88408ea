"""Objectives in the trainer: they are learned from, written down, and an interrupted run goes on as if it never was."""

import numpy as np
import pytest
import torch

from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.models.train import Run, train
from pipeline.study.objective import names
from pipeline.training.processes import ALONE

SPEC = {
    "architecture": "gpt", "layers": 2, "width": 16, "heads": 2, "context": 8,
    "training": {"steps": 30, "batch": 6, "lr": 0.01, "validate_every": 10, "accumulate": 2, "schedule": {"warmup": 5}},
}  # fmt: skip
TERMS = {"orthogonality", "anti_polysemantic", "l1", "l0_gates", "online_sae", "direct_sparsity"}


@pytest.fixture
def split(make_tokens):
    dataset = make_tokens(np.random.default_rng(0).choice([1, 2, 3, 4, 5], 400), 8)
    return dataset.facts, examples(dataset, "train", 8)


def begun(facts: dict, *kinds: str, **settings):
    """A model, its settings and its objectives before the first step."""
    budget = {"tokens": 20, **settings}
    listed = [{"objective": kind, **({} if kind in ("topk-mlp", "l0-gates") else budget)} for kind in kinds]
    model, parsed = checkpoint.build({**SPEC, "objectives": listed}, facts)
    return model, parsed, checkpoint.objectives(parsed, model)


def test_all_together_are_written_down_at_every_measurement(split):
    facts, data = split
    model, settings, found = begun(facts, *names())
    rows = train(Run(model, settings, data, data, found)).curve.rows
    assert len(rows) == 3
    assert {*TERMS, "l0_gates_open", "online_sae_fve", "online_sae_l0"} <= rows[0].keys()
    assert "topk_mlp" not in rows[0]
    assert rows[-1]["online_sae_fve"] > rows[0]["online_sae_fve"]


@pytest.mark.parametrize("kind", ["orthogonality", "anti-polysemantic", "l1", "direct-sparsity"])
def test_a_large_weight_makes_its_term_fall(split, kind):
    facts, data = split
    model, settings, found = begun(facts, kind, weight=10.0)
    rows = train(Run(model, settings, data, None, found)).curve.rows
    name = kind.replace("-", "_")
    assert rows[-1][name] < 0.8 * rows[0][name]


def test_a_run_from_a_snapshot_ends_in_the_same_bytes(split):
    facts, data = split
    straight = Run(*_parts(facts, data))
    ends = {}
    batches = straight.batches()
    for step in range(1, 31):
        straight.step(*next(batches))
        if step == 13:
            stored = {name: value.clone() for name, value in straight.tensors().items()}
            at = {**vars(straight.at), "rows": list(straight.at.rows), "times": list(straight.at.times)}
    ends["straight"] = straight.tensors()
    again = Run(*_parts(facts, data))
    again.restore(stored, at)
    batches = again.batches()
    for _ in range(13, 30):
        again.step(*next(batches))
    ends["again"] = again.tensors()
    assert ends["straight"].keys() == ends["again"].keys()
    assert [name for name, value in ends["straight"].items() if not torch.equal(value, ends["again"][name])] == []


def _parts(facts, data):
    model, settings, found = begun(facts, *names())
    return model, settings, data, data, found, ALONE
