"""The saved folder is SAELens' own: it opens there without conversion and means the same."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from pipeline.artifacts.manifest import MANIFEST, Artifact, publishing
from pipeline.saes import checkpoint

SPECS = {
    "relu": {"architecture": "relu", "l1": 0.1},
    "relu, b_dec kept out of the encoder": {"architecture": "relu", "subtract_b_dec": False, "penalty": "plain", "init": "linear"},
    "topk": {"architecture": "topk", "k": 3},
}


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys())
def saved(request, build, tmp_path):
    """An SAE with random weights, and the artifact it was saved to."""
    sae, settings = build(**request.param, latents=20)
    spec = {**settings.settings(), "hook": "blocks.1.resid_post", "metadata": {"model_name": "gpt"}}
    with publishing(tmp_path / "sae", "sae", spec, {}) as draft:
        checkpoint.save(draft, sae, spec, torch.linspace(-10, 0, 20))
    return sae, Artifact.open(tmp_path / "sae" / MANIFEST)


@pytest.fixture(scope="module")
def saelens():
    """SAELens, and its messages: legacy layouts are told by a warning or a log line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens")


def test_saelens_opens_it_as_it_is_and_computes_the_same(saved, saelens, caplog):
    sae, artifact = saved
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        theirs = saelens.SAE.load_from_disk(artifact.folder)
    assert [str(one.message) for one in told] == []
    assert [record.message for record in caplog.records] == []
    x = 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 1
    with torch.no_grad():
        ours, its = sae.encode(x), theirs.encode(x)
        its = its.to_dense() if its.is_sparse else its
        assert (ours != 0).any()
        assert (ours == 0).any()
        torch.testing.assert_close(its, ours, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs.decode(its), sae.decode(ours), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs(x), sae.decode(ours), rtol=1e-5, atol=1e-5)


def test_saelens_keeps_what_the_folder_says_of_it(saved, saelens):
    _, artifact = saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = saelens.SAE.load_from_disk(artifact.folder)
    assert theirs.cfg.architecture() == {"relu": "standard", "topk": "topk"}[artifact.spec["architecture"]]
    assert (theirs.cfg.d_in, theirs.cfg.d_sae) == (6, 20)
    assert (theirs.cfg.metadata.model_name, theirs.cfg.metadata.hook_name) == ("gpt", "blocks.1.resid_post")
    assert {name: tuple(value.shape) for name, value in theirs.state_dict().items()} == {
        "W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,),
    }  # fmt: skip


def test_the_layout_is_the_one_of_a_folder_that_saelens_writes(saved, saelens, tmp_path):
    """Same files, same keys, same shapes: nothing that SAELens would have to guess."""
    _, artifact = saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saelens.SAE.load_from_disk(artifact.folder).save_model(tmp_path / "theirs")
    ours, theirs = (json.loads((folder / "cfg.json").read_text()) for folder in (artifact.folder, tmp_path / "theirs"))
    assert {key: theirs[key] for key in ours if key != "metadata"} == {key: ours[key] for key in ours if key != "metadata"}
    ours, theirs = (load_file(folder / "sae_weights.safetensors") for folder in (artifact.folder, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sparsity_is_readable_as_saelens_reads_it(saved):
    _, artifact = saved
    sparsity = load_file(artifact.file("sparsity.safetensors"))
    assert list(sparsity) == ["sparsity"]
    assert torch.equal(sparsity["sparsity"], torch.linspace(-10, 0, 20))


def test_our_own_reading_gives_the_same_sae(saved):
    sae, artifact = saved
    loaded = checkpoint.load(artifact)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert torch.equal(loaded.decode(loaded.encode(x)), sae.decode(sae.encode(x)))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert artifact.facts == {"width": 6, "latents": 20, "parameters": 2 * 6 * 20 + 20 + 6}


def test_what_was_asked_for_stands_in_the_metadata(saved):
    _, artifact = saved
    assert artifact.read_json("cfg.json")["metadata"]["saeflow"] == artifact.spec
