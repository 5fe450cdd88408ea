"""The saved folder is SAELens' own: it opens there without conversion and means the same, or is refused by name. And what is loaded is what
was saved, or refused."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.artifacts.errors import DamagedArtifact
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.saes import checkpoint
from pipeline.saes.relu import Module
from tests.saes.formulas import ALL, BATCHTOPK, GATED, JUMPRELU, MATRYOSHKA, RELU, SHIFTED, TOPK

OUT, SKIP = {"out": 4}, {"out": 4, "skip": True}
THEIRS = {
    "relu": (RELU, "standard"),
    "relu, b_dec kept out of the encoder": ({**RELU, "subtract_b_dec": False, "penalty": "plain", "init": "linear"}, "standard"),
    "shifted-relu": (SHIFTED, "standard"),
    "topk": (TOPK, "topk"),
    "batchtopk": (BATCHTOPK, "jumprelu"),
    "matryoshka": (MATRYOSHKA, "jumprelu"),
    "jumprelu": (JUMPRELU, "jumprelu"),
    "jumprelu, b_dec kept out of the encoder": ({**JUMPRELU, "subtract_b_dec": False}, "jumprelu"),
    "gated": (GATED, "gated"),
    "relu transcoder": ({**RELU, **OUT}, "transcoder"),
    "relu skip-transcoder": ({**RELU, **SKIP}, "skip_transcoder"),
    "shifted-relu skip-transcoder": ({**SHIFTED, **SKIP}, "skip_transcoder"),
    "batchtopk transcoder": ({**BATCHTOPK, **OUT}, "jumprelu_transcoder"),
    "matryoshka skip-transcoder": ({**MATRYOSHKA, **SKIP}, "jumprelu_skip_transcoder"),
    "jumprelu transcoder": ({**JUMPRELU, **OUT}, "jumprelu_transcoder"),
    "jumprelu skip-transcoder": ({**JUMPRELU, **SKIP}, "jumprelu_skip_transcoder"),
}
"""What SAELens opens, and as what."""
OURS = {
    "signed topk": ({**TOPK, "signed": True}, "signed_topk"),
    "topk transcoder": ({**TOPK, **OUT}, "topk_transcoder"),
    "topk skip-transcoder": ({**TOPK, **SKIP}, "topk_skip_transcoder"),
    "gated transcoder": ({**GATED, **OUT}, "gated_transcoder"),
}
"""What SAELens has no architecture for."""
X = 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 1


def publish(folder: Path, sae, settings, rows=X, **more) -> Artifact:
    spec = {**settings.settings(), "hook": "a", "metadata": {"model_name": "gpt"}, **({"output": "b"} if settings.outputs else {}), **more}
    with publishing(folder, "sae", spec, {}) as draft:
        checkpoint.save(draft, sae, spec, torch.linspace(-10, 0, 20), rows)
    return Artifact.open(folder / MANIFEST)


@pytest.fixture
def saved(request, build, tmp_path):
    """An SAE with random weights, the artifact it was saved to, and SAELens' name of it."""
    spec, name = request.param
    sae, settings = build(**spec)
    return sae, publish(tmp_path / "sae", sae, settings), name


every = pytest.mark.parametrize("saved", (THEIRS | OURS).values(), ids=(THEIRS | OURS).keys(), indirect=True)
known = pytest.mark.parametrize("saved", THEIRS.values(), ids=THEIRS.keys(), indirect=True)


@pytest.fixture(scope="module")
def saelens():
    """SAELens, and its messages: legacy layouts are told by a warning or a log line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens")


@known
def test_saelens_opens_it_as_it_is_and_computes_the_same(saved, saelens, caplog):
    sae, artifact, name = saved
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        theirs = saelens.SAE.load_from_disk(artifact.folder)
    assert [str(one.message) for one in told] == []
    assert [record.message for record in caplog.records] == []
    assert theirs.cfg.architecture() == name
    with torch.no_grad():
        ours, its = sae.encode(X), theirs.encode(X)
        its = its.to_dense() if its.is_sparse else its
        assert (ours != 0).any()
        assert (ours == 0).any()
        torch.testing.assert_close(its, ours, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs.decode(its), sae.decode(ours), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs(X), sae(X), rtol=1e-5, atol=1e-5)


@known
def test_the_layout_is_the_one_of_a_folder_that_saelens_writes(saved, saelens, tmp_path):
    """Same files, same keys, same shapes: nothing that SAELens would have to guess."""
    _, artifact, _ = saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = saelens.SAE.load_from_disk(artifact.folder)
    assert (theirs.cfg.d_in, theirs.cfg.d_sae) == (6, 20)
    assert (theirs.cfg.metadata.model_name, theirs.cfg.metadata.hook_name) == ("gpt", "a")
    theirs.save_model(tmp_path / "theirs")
    ours, theirs = (json.loads((folder / "cfg.json").read_text()) for folder in (artifact.folder, tmp_path / "theirs"))
    assert {key: theirs[key] for key in ours if key != "metadata"} == {key: ours[key] for key in ours if key != "metadata"}
    ours, theirs = (load_file(folder / "sae_weights.safetensors") for folder in (artifact.folder, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("saved", OURS.values(), ids=OURS.keys(), indirect=True)
def test_saelens_refuses_by_name_what_it_has_no_architecture_for(saved, saelens):
    _, artifact, name = saved
    assert artifact.read_json("cfg.json")["architecture"] == name
    with pytest.raises(KeyError, match=name):
        saelens.SAE.load_from_disk(artifact.folder)


@pytest.mark.parametrize("spec", [BATCHTOPK, MATRYOSHKA, JUMPRELU], ids=lambda spec: spec["architecture"])
def test_what_has_thresholds_is_never_read_as_a_plain_relu(build, tmp_path, saelens, spec):
    artifact = publish(tmp_path / "sae", *build(**spec))
    written = json.loads((artifact.folder / "cfg.json").read_text())
    (artifact.folder / "cfg.json").write_text(json.dumps({**written, "architecture": "standard"}))
    with pytest.raises(RuntimeError, match="threshold"):
        saelens.SAE.load_from_disk(artifact.folder)


@every
def test_our_own_reading_gives_the_same_sae(saved):
    sae, artifact, _ = saved
    loaded = checkpoint.load(artifact)
    assert torch.equal(loaded.encode(X), sae.encode(X))
    assert torch.equal(loaded(X), sae(X))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    numbers = sum(value.numel() for value in sae.parameters())
    assert artifact.facts == {"width": 6, "out": sae.W_dec.shape[1], "latents": 20, "parameters": numbers}


@every
def test_what_was_asked_for_stands_in_the_metadata(saved):
    sae, artifact, _ = saved
    told = artifact.read_json("cfg.json")["metadata"]
    assert told["saeflow"] == artifact.spec
    assert told.get("hook_name_out") == ("b" if sae.spec.outputs else None)
    assert told["latent_units"] == "activations"


def test_whitened_units_are_told(build, tmp_path):
    sae, settings = build(**RELU, normalise={"centre": True, "scale": "whiten"})
    told = publish(tmp_path / "sae", sae, settings).read_json("cfg.json")["metadata"]
    assert told["latent_units"] == "whitened activations"


def test_sparsity_is_readable_as_saelens_reads_it(build, tmp_path):
    sparsity = load_file(publish(tmp_path / "sae", *build(**RELU)).file("sparsity.safetensors"))
    assert list(sparsity) == ["sparsity"]
    assert torch.equal(sparsity["sparsity"], torch.linspace(-10, 0, 20))


def republished(artifact: Artifact, name: str, change) -> Artifact:
    """The artifact with tensors of one file changed, hashes and all: what a wrong export, not a damaged disk, leaves."""
    tensors = load_file(artifact.folder / name)
    change(tensors)
    kept = {other: (artifact.folder / other).read_bytes() for other in artifact.files if other != name}
    with publishing(artifact.folder, "sae", artifact.spec, {}) as draft:
        draft.facts |= artifact.facts
        save_file({key: value.contiguous() for key, value in tensors.items()}, draft.path(name))
        for other, content in kept.items():
            draft.path(other).write_bytes(content)
    return Artifact.open(artifact.folder / MANIFEST)


WEIGHTS = "sae_weights.safetensors"
WRONG = {
    "latents in other units": lambda t: t.update(b_enc=t["b_enc"] * 1.1, W_enc=t["W_enc"] * 1.1, W_dec=t["W_dec"] / 1.1),
    "a decoder turned around": lambda t: t.update(W_dec=t["W_dec"].flip(1)),
    "no thresholds": lambda t: t.update(threshold=t["threshold"] * 0),
    "a bias that was forgotten": lambda t: t.update(b_dec=t["b_dec"] * 0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_do_not_give_what_was_stored_are_refused_and_named(build, tmp_path, wrong):
    sae, settings = build(**JUMPRELU)
    artifact = republished(publish(tmp_path / "sae", sae, settings), WEIGHTS, WRONG[wrong])
    with pytest.raises(DamagedArtifact, match=r"probe\.safetensors.*sae_weights\.safetensors gives other"):
        checkpoint.load(artifact)


@pytest.mark.parametrize("wrong", ["a bias that was forgotten", "no thresholds", "latents in other units"])
def test_one_large_row_does_not_switch_the_check_off(build, tmp_path, wrong):
    sae, settings = build(**JUMPRELU)
    rows = torch.cat([1e5 * X[:1], X[1:]])
    artifact = republished(publish(tmp_path / "sae", sae, settings, rows=rows), WEIGHTS, WRONG[wrong])
    with pytest.raises(DamagedArtifact, match=r"sae_weights\.safetensors gives other"):
        checkpoint.load(artifact)


def test_latents_that_fire_where_they_did_not_are_told_however_small(build, tmp_path, monkeypatch):
    artifact = publish(tmp_path / "sae", *build(**RELU))
    encode = Module.encode
    monkeypatch.setattr(Module, "encode", lambda sae, x: encode(sae, x).clamp_min(1e-9))
    with pytest.raises(DamagedArtifact, match="gives other latents"):
        checkpoint.load(artifact)


def test_weights_that_are_no_numbers_are_refused(build, tmp_path):
    artifact = publish(tmp_path / "sae", *build(**RELU))
    with pytest.raises(DamagedArtifact, match="gives other"):
        checkpoint.load(republished(artifact, WEIGHTS, lambda t: t.update(b_dec=t["b_dec"] * torch.nan)))


def test_another_formula_for_the_same_weights_is_refused(build, tmp_path, monkeypatch):
    artifact = publish(tmp_path / "sae", *build(**BATCHTOPK))
    monkeypatch.setattr("pipeline.saes.batchtopk.Module.encode", lambda sae, x: sae.pre(sae.centred(x)).relu())
    with pytest.raises(DamagedArtifact, match="gives other latents"):
        checkpoint.load(artifact)


def test_rounding_of_another_machine_is_not_refused(build, tmp_path):
    artifact = publish(tmp_path / "sae", *build(**JUMPRELU))
    checkpoint.load(republished(artifact, WEIGHTS, lambda t: t.update(W_enc=t["W_enc"] * (1 + 1e-6), b_dec=t["b_dec"] * (1 - 1e-6))))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update(b_enc=torch.zeros(21)), r"b_enc is \(21,\), and the spec makes it \(20,\)"),
        (lambda t: t.pop("threshold"), r"threshold is missing, and the spec makes it \(20,\)"),
        (lambda t: t.update(W_skip=torch.zeros(6, 6)), r"W_skip is \(6, 6\), and the spec makes it no tensor"),
    ],
)
def test_weights_of_another_architecture_or_size_are_refused_and_named(build, tmp_path, change, told):
    artifact = republished(publish(tmp_path / "sae", *build(**JUMPRELU)), WEIGHTS, change)
    with pytest.raises(DamagedArtifact, match=rf"sae_weights\.safetensors: {told}"):
        checkpoint.load(artifact)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec["architecture"])
def test_other_weights_beside_them_are_read_by_their_name(build, tmp_path, spec):
    (last, settings), (best, _) = build(**spec), build(**spec, seed=8)
    whole = {**settings.settings(), "hook": "a", "metadata": {}}
    with publishing(tmp_path / "sae", "sae", whole, {}) as draft:
        checkpoint.save(draft, last, whole, torch.zeros(20), X)
        checkpoint.write_weights(draft.path("best.safetensors"), best)
    artifact = Artifact.open(tmp_path / "sae" / MANIFEST)
    assert torch.equal(checkpoint.load(artifact)(X), last(X))
    assert torch.equal(checkpoint.load(artifact, "best.safetensors")(X), best(X))
