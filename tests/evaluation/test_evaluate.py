"""The step as a whole: every metric is of the rows that are not flagged, and the loss score of the same ones."""

import json

import numpy as np
import pytest
import torch

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.evaluation import splice
from pipeline.evaluation.measured import Measured
from pipeline.models import checkpoint as models
from pipeline.models.examples import examples
from pipeline.saes import checkpoint
from pipeline.steps.evaluate import main
from tests.stores import harvested

HOOK = "blocks.0.resid_post"
MODEL = {"architecture": "gpt", "layers": 1, "width": 6, "heads": 2, "context": 8, "seed": 0, "threads": 1}
SPEC = {"hook": HOOK, "output": HOOK, "batch": 10, "split": "train", "active_above": 0.1, "threads": 1}


@pytest.fixture
def study(tmp_path, make_tokens):
    """Manifests of a model, a text in which token 3 is special, and an SAE."""
    dataset = make_tokens(np.random.default_rng(0).integers(0, 11, 60), 11, special=[3])
    model, _ = models.build(MODEL, {"vocabulary": 11})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    with publishing(tmp_path / "model", "model", MODEL, {}) as draft:
        models.save(draft, model, MODEL, {"vocabulary": 11})
    spec = {"architecture": "topk", "latents": 20, "k": 3, "hook": HOOK, "metadata": {}}
    sae, _ = checkpoint.build(spec, 6)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    with publishing(tmp_path / "sae", "sae", spec, {}) as draft:
        checkpoint.save(draft, sae, spec, torch.zeros(20), torch.randn(16, 6))
    manifests = {name: tmp_path / name / MANIFEST for name in ("model", "sae")}
    return {**manifests, "dataset": dataset.folder / MANIFEST}


@pytest.fixture
def evaluated(study, tmp_path):
    """Metrics of the SAE on a store with these settings, and the store."""

    def evaluated(**settings) -> tuple[dict, ActivationStore]:
        model, dataset = (Artifact.open(study[name]) for name in ("model", "dataset"))
        store = harvested(tmp_path / "store", models.load(model), dataset, 8, hooks=[HOOK], **settings)
        main(SPEC, study["sae"], store.artifact.folder / MANIFEST, study["model"], study["dataset"], tmp_path / "out")
        return json.loads((tmp_path / "out/metrics.json").read_text()), store

    return evaluated


@pytest.mark.parametrize("settings", [{}, {"sinks_above": 1.2}, {"sinks_above": None, "leave_out": "none"}])
def test_every_metric_is_of_the_rows_that_are_kept(evaluated, study, settings):
    found, store = evaluated(**settings)
    kept = store[HOOK].kept(0, len(store))
    rows = torch.from_numpy(store[HOOK].read(0, len(store)) if kept is None else store[HOOK].read(0, len(store))[kept])
    assert (found["rows"], found["flagged"]) == (len(rows), len(store) - len(rows))
    assert (found["flagged"] > 0) == (settings.get("sinks_above") == 1.2)
    assert found["left_out"] == 59 - len(store)
    assert (found["left_out"] > 0) == (settings.get("leave_out") != "none")
    sae = checkpoint.load(Artifact.open(study["sae"]))
    latents = sae.encode(rows)
    errors = (rows - sae.decode(latents)).double().square().sum(1)
    assert found["mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert found["fve"] == pytest.approx(1 - errors.sum().item() / (rows.double() - rows.double().mean(0)).square().sum().item(), rel=1e-5)
    assert found["l0"] == pytest.approx((latents != 0).sum(1).double().mean().item())
    assert found["dead"] == pytest.approx((latents == 0).all(0).double().mean().item())
    model, dataset = (Artifact.open(study[name]) for name in ("model", "dataset"))
    split, mean = examples(dataset, "train", 8), rows.double().mean(0)
    losses = splice.losses(models.load(model), split, HOOK, lambda x: sae.decode(sae.encode(x)), mean, 2, Measured(store, HOOK))
    assert found["positions"] == losses["positions"] == 59
    for name, value in losses.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_a_store_all_of_whose_rows_are_flagged_is_told_of(evaluated):
    """The median is that of a sample of the whole split; the one row that is recorded is longer."""
    with pytest.raises(UserError, match=r"blocks\.0\.resid_post: all 1 rows are flagged"):
        evaluated(rows=1, sinks_above=1.0001, leave_out="none")


def test_a_store_of_another_dataset_is_refused(study, make_store, tmp_path):
    store = make_store(np.ones((9, 6)), length=8)
    with pytest.raises(UserError, match="recorded over a dataset with hash"):
        main(SPEC, study["sae"], store.artifact.folder / MANIFEST, study["model"], study["dataset"], tmp_path / "out")
