"""Models of Hugging Face's taken over: equal outputs, whole in the artifact, sessions, and one line for what cannot be."""

import json
import re
from math import exp

import pytest
import torch
import transformers as hf
from families import CONFIGS, CONTEXT, ENCODERS, VOCABULARY, write

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact, sha256
from pipeline.artifacts.publishing import publishing
from pipeline.models import checkpoint
from pipeline.models.hooks import record
from pipeline.models.hub import Spec, fetch

FACTS = {"form": "tokens", "vocabulary": VOCABULARY}


def spec(folder, **settings) -> Spec:
    return Spec.model_validate({"architecture": "hub", "dataset": "d", "name": str(folder), "context": CONTEXT, **settings})


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def published(tmp_path):
    """The artifact of a fetched model, as the workflow makes it: `published(spec)`."""

    def published(parsed: Spec) -> Artifact:
        taken = parsed.settings()
        model, _, facts = checkpoint.fetched(taken, FACTS)
        with publishing(tmp_path / "artifact", "model", taken, {}) as draft:
            checkpoint.save(draft, model, taken, facts)
        return Artifact.open(tmp_path / "artifact" / MANIFEST)

    return published


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_transformers_and_the_artifact_gives_them_again(tmp_path, published, ids, name, monkeypatch):
    folder = write(tmp_path, name)
    theirs = (hf.AutoModel if name in ENCODERS else hf.AutoModelForCausalLM).from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = theirs(ids).last_hidden_state if name in ENCODERS else theirs(ids, use_cache=False).logits
    artifact = published(spec(folder))
    for file, digest in artifact.facts["data"]["source"]["files"].items():
        assert sha256(folder / file) == digest
        (folder / file).unlink()
    monkeypatch.setattr("pipeline.models.hub_fetch.fetch", None)
    again = checkpoint.load(artifact)
    assert torch.equal(again(ids), wanted)
    assert not again.training
    assert json.dumps(artifact.facts) == json.dumps(Artifact.open(artifact.folder / MANIFEST).facts)
    assert str(tmp_path) not in json.dumps(artifact.facts)


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("llama-tied", True), ("gemma", True), ("gpt2", True), ("gpt2-wide", False)])
def test_tied_weights_are_stored_once_and_stay_tied(tmp_path, published, name, tied):
    artifact = published(spec(write(tmp_path, name)))
    model = checkpoint.load(artifact)
    network = model.network
    assert (network.get_output_embeddings().weight is network.get_input_embeddings().weight) == tied
    assert ("network.lm_head.weight" in model.state_dict()) != tied
    assert artifact.facts["parameters"] == sum(p.numel() for p in model.parameters())


def test_half_precision_is_what_the_artifact_holds(tmp_path, published, ids):
    artifact = published(spec(write(tmp_path, "llama"), dtype="bfloat16"))
    model = checkpoint.load(artifact)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(model(ids), fetch(spec(tmp_path / "llama", dtype="bfloat16"), FACTS)[0](ids))
    assert model.losses(model(ids), ids).dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "llama-scaled", "phi3-scaled", "olmo2", "gemma3", "gpt2", "gpt-neo", "gpt-neox"])
def test_a_session_goes_on_as_the_whole_text_does_also_beyond_its_context(tmp_path, ids, name):
    model, _ = fetch(spec(write(tmp_path, name)), FACTS)
    text = ids.flatten()
    feed, at = model.session(), 0
    with torch.no_grad():
        for size in (3, 1, 1, 4, 2, 1, 3, 1):
            at += size
            window = text[max(0, at - CONTEXT) : at]
            torch.testing.assert_close(feed(text[at - size : at]), model(window[None])[0, -1], rtol=1e-4, atol=1e-4)
    assert at > CONTEXT


def test_an_encoder_has_no_loss_and_no_text_to_go_on_with(tmp_path, ids):
    model, _ = fetch(spec(write(tmp_path, "bert")), FACTS)
    assert not model.scored
    with pytest.raises(UserError, match="is an encoder"):
        model.losses(model(ids), ids)
    with pytest.raises(UserError, match="is an encoder"):
        model.session()
    assert not any("pooler" in name for name in model.state_dict())
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % VOCABULARY
    assert not torch.equal(model(other)[:, 0], model(ids)[:, 0]), "an encoder sees both sides"


def test_weights_of_an_encoder_with_a_head_are_taken_without_it(tmp_path, ids):
    torch.manual_seed(0)
    headed = hf.BertForMaskedLM(CONFIGS["bert"]()).eval()
    headed.save_pretrained(tmp_path / "masked")
    model, _ = fetch(spec(tmp_path / "masked"), FACTS)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), headed.bert(ids).last_hidden_state)


def test_an_encoder_of_an_unknown_family_needs_no_pooler_either(tmp_path, published, ids):
    settings = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 4}
    headed = hf.RobertaPreLayerNormForMaskedLM(hf.RobertaPreLayerNormConfig(**settings)).eval()
    headed.save_pretrained(tmp_path / "other")
    model = checkpoint.load(published(spec(tmp_path / "other", modules={"blocks.0.mlp_out": "encoder.layer.0.output.dense"})))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), headed.roberta_prelayernorm(ids).last_hidden_state)
    assert record(model, ids, ["blocks.0.mlp_out"])["blocks.0.mlp_out"].shape == (3, 10, 16)
    assert not model.scored


def test_weights_in_parts_and_pickled_ones(tmp_path, ids):
    whole, _ = fetch(spec(write(tmp_path, "llama")), FACTS)
    network = whole.network
    network.save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    parted = spec(tmp_path / "parts")
    assert len(parted.sources()) > 4
    model, facts = fetch(parted, FACTS)
    assert torch.equal(model(ids), whole(ids))
    assert {*facts["source"]["files"]} == {source.rsplit("/", 1)[1] for source in parted.sources()}
    (tmp_path / "pickled").mkdir()
    network.config.save_pretrained(tmp_path / "pickled")
    torch.save(network.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    assert torch.equal(fetch(spec(tmp_path / "pickled"), FACTS)[0](ids), whole(ids))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"transformers .* cannot load it"):
        fetch(spec(tmp_path / "pickled"), FACTS)


def test_an_unknown_family_names_its_modules(tmp_path, published, ids):
    """A Llama under the name of a family that computes the same and is not in the table."""
    known, _ = fetch(spec(write(tmp_path, "llama")), FACTS)
    wanted = {"blocks.1.mlp_hidden", "blocks.1.resid_mid", "blocks.2.attn_out", "blocks.0.resid_post", "blocks.1.resid_pre"}
    values = record(known, ids, wanted)
    folder = tmp_path / "llama"
    config = json.loads((folder / "config.json").read_text())
    other = {"model_type": "granite", "architectures": ["GraniteForCausalLM"], "attention_multiplier": 0.5}  # 1 / sqrt(width of a head)
    (folder / "config.json").write_text(json.dumps({**config, **other}))
    with pytest.raises(
        UserError, match=r"the family 'granite' is not one whose hooks are known \(bert, .*\); give its hooks under modules"
    ):
        fetch(spec(folder), FACTS)
    modules = {
        "blocks.0.resid_post": "model.layers.0", "blocks.1.resid_pre": "input:model.layers.1",
        "blocks.2.attn_out": "model.layers.2.self_attn", "blocks.1.resid_mid": "input:model.layers.1.post_attention_layernorm",
        "blocks.1.mlp_hidden": "input:model.layers.1.mlp.down_proj", "normed": "model.norm",
    }  # fmt: skip
    parsed = spec(folder, modules=modules)
    model = checkpoint.load(published(parsed))
    assert torch.equal(model(ids), known(ids))
    found = record(model, ids, [*wanted, "normed"])
    assert all(torch.equal(found[hook], value) for hook, value in values.items())
    assert torch.equal(model.network.lm_head(found["normed"]), model(ids))
    assert parsed.hooks() == dict.fromkeys(modules)
    assert parsed.meaning("normed") == "what comes out of model.norm"
    assert parsed.meaning("blocks.1.resid_pre") == "what goes into model.layers.1"


def test_own_hooks_stand_beside_those_of_a_known_family(tmp_path, ids):
    parsed = spec(write(tmp_path, "gpt2"), modules={"embedded": "transformer.drop"})
    model, _ = fetch(parsed, FACTS)
    found = record(model, ids, ["embedded", "blocks.0.resid_pre"])
    assert torch.equal(found["embedded"], found["blocks.0.resid_pre"])
    assert parsed.hooks()["embedded"] is None
    assert parsed.hooks()["blocks.2.mlp_hidden"] == 64


def test_a_hook_that_is_not_there_is_told_with_those_that_are(tmp_path):
    model, _ = fetch(spec(write(tmp_path, "gpt-neox")), FACTS)
    model.require(["blocks.0.mlp_out"])
    with pytest.raises(UserError, match=r"has no hook blocks\.0\.resid_mid; it has: blocks\.0\.resid_pre, blocks\.0\.attn_out"):
        model.require(["blocks.0.mlp_out", "blocks.0.resid_mid"])


def test_a_module_that_is_not_there_is_told_with_those_like_it(tmp_path, ids):
    folder = write(tmp_path, "gpt2")
    with pytest.raises(
        UserError, match=re.escape("hook x: the model has no module 'transformer.h.0.mpl'; did you mean transformer.h.0.mlp")
    ):
        fetch(spec(folder, modules={"x": "transformer.h.0.mpl"}), FACTS)
    model, _ = fetch(spec(folder, modules={"x": "transformer"}), FACTS)
    with pytest.raises(UserError, match=r"hook x: its module \(GPT2Model\) has a .* there, and not a tensor"):
        record(model, ids, ["x"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not readable as JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "names no model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no weights (model.safetensors or pytorch_model.bin"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"not tensors"), "cannot load it"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}'), "cannot load it"),
    ],
    ids=["no-config", "broken", "no-type", "no-weights", "no-tensors", "no-size"],
)
def test_files_that_cannot_be_used_are_told_on_one_line(tmp_path, spoil, message):
    folder = write(tmp_path, "llama")
    spoil(folder)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        fetch(spec(folder), FACTS)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_the_configuration_are_told(tmp_path):
    folder = write(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"its weights lack model\.layers\.3\.\S+, .* and 6 more"):
        fetch(spec(folder), FACTS)
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 30}))
    with pytest.raises(UserError, match=r"weights have another shape for|cannot load it") as caught:
        fetch(spec(folder), FACTS)
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = write(tmp_path, "llama")
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\n")
    automap = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": automap}))
    with pytest.raises(UserError, match="cannot load it"):
        fetch(spec(folder, modules={"x": "y"}), FACTS)
    assert not ran.exists()


def test_vocabulary_and_context_have_to_fit(tmp_path):
    folder = write(tmp_path, "gpt2")
    with pytest.raises(UserError, match=rf"the dataset's vocabulary has 1,000 tokens, and that of the model '.*' has {VOCABULARY}"):
        fetch(spec(folder), {**FACTS, "vocabulary": 1000})
    with pytest.raises(UserError, match=r"context: 13: the model .* takes at most 12 tokens"):
        fetch(spec(folder, context=13), FACTS)


def test_a_hub_that_cannot_be_reached_is_told_on_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="model 'nobody/nothing': ") as caught:
        fetch(spec("nobody/nothing"), FACTS)
    assert "\n" not in str(caught.value)
    assert "hub" in str(caught.value)


def test_the_small_published_model_goes_on_as_its_reference_does(data_folder):
    """Greedy continuation of the beginning-of-text token, with kept keys and values."""
    from tokenizers import Tokenizer

    from pipeline.models.sample import go_on

    folder = data_folder / "stories260K"
    model, _ = fetch(spec(folder, context=512), {**FACTS, "vocabulary": 512})
    ids = go_on(model, [1], 200, 1, 1.0, 0)
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids)
    assert text == (folder / "expected_greedy_200.txt").read_text(encoding="utf-8")
    assert sum(p.numel() for p in model.parameters()) == 260_032


def test_the_larger_published_model_reads_its_stories_well(data_folder, tmp_path):
    from tokenizers import Tokenizer

    folder = data_folder / "stories15M"
    parsed = spec(folder, context=256)
    model, _ = fetch(parsed, {**FACTS, "vocabulary": 32000})
    assert sum(p.numel() for p in model.parameters()) == 15_191_712
    assert parsed.hooks()["blocks.5.mlp_hidden"] == 768
    story = (data_folder / "tinystories.txt").read_text(encoding="utf-8").split("<|endoftext|>")[1].strip()
    encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(story, add_special_tokens=False).ids
    ids = torch.tensor([[1, *encoded]])[:, :201]
    with torch.no_grad():
        loss = model.losses(model(ids[:, :-1]), ids[:, 1:]).mean().item()
        found = record(model, ids[:, :-1], ["blocks.2.resid_post"])["blocks.2.resid_post"]
    assert exp(loss) < 6, f"{exp(loss):.2f}"
    assert found.shape == (1, ids.shape[1] - 1, 288)
