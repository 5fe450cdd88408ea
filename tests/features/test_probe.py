"""Single inputs through a model and an SAE, against the steps done one by one."""

import pytest
import torch

from pipeline.features.probe import probe
from pipeline.models import checkpoint as models
from pipeline.saes import checkpoint


@pytest.fixture
def model():
    return models.build({"architecture": "mlp", "hidden": [6, 5], "batch_norm": [1]}, {"width": 3})[0].eval()


@pytest.fixture
def sae():
    found, _ = checkpoint.build({"architecture": "relu", "latents": 12}, 5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return found


SAMPLES = [{"input": [1.0, -2.0, 0.5], "expected": 3.0}, {"input": [0.0, 9.0, 1.0], "expected": -1.0}]


@pytest.mark.parametrize(("above", "top"), [(0.0, 3), (0.5, 12), (1.0, 50)])
def test_each_sample_is_followed(model, sae, above, top):
    found = probe(model, sae, {"hook": "layer2", "samples": SAMPLES, "active_above": above, "top": top})
    assert len(found) == 2
    for sample, one in zip(SAMPLES, found, strict=True):
        hidden = {}
        with torch.no_grad():
            output = model(torch.tensor([sample["input"]]), lambda name, value, hidden=hidden: hidden.setdefault(name, value))
            f = sae.encode(hidden["layer2"])[0].tolist()
        assert (one["input"], one["expected"]) == (sample["input"], sample["expected"])
        assert one["output"] == pytest.approx(output.item(), rel=1e-5)
        assert one["active"] == sum(value > above for value in f) > 0
        expected = sorted(((value, -i) for i, value in enumerate(f) if value > 0), reverse=True)[:top]
        assert [latent["latent"] for latent in one["top"]] == [-i for _, i in expected]
        assert [latent["activation"] for latent in one["top"]] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_a_sample_does_not_depend_on_the_others(model, sae):
    spec = {"hook": "layer2", "active_above": 0.0, "top": 5}
    both = probe(model, sae, {**spec, "samples": SAMPLES})
    (alone,) = probe(model, sae, {**spec, "samples": SAMPLES[1:]})
    assert alone["output"] == pytest.approx(both[1]["output"], rel=1e-5)
    assert [one["latent"] for one in alone["top"]] == [one["latent"] for one in both[1]["top"]]
