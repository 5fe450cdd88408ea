"""Models that were trained elsewhere, in a study: faults at their setting, hooks known from their files, or not known yet."""

import json
import re
import subprocess
import sys

import pytest

from pipeline.study import hub_families, hub_files
from pipeline.study.faults import StudyError
from pipeline.study.models.hub import Hub

STUDY = """\
name: taken
datasets: {{text: {{kind: text, files: [text.txt]}}}}
models: {{it: {{dataset: text, {model}}}}}
activations: {{acts: {{model: it, hooks: [{hook}]}}}}
saes: {{topk: {{architecture: topk, activations: acts, latents: 32, k: {k}}}}}
"""
LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 2, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A folder as Hugging Face has it; `folder(config)`. Its weights are never read here."""

    def folder(config: dict | None = None):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "config.json").write_text(json.dumps(config or LLAMA))
        (tmp_path / "model" / "model.safetensors").touch()
        return tmp_path / "model"

    return folder


@pytest.fixture
def study(read):
    """`study("architecture: hub, name: ...")` parsed, or its faults as text."""

    def study(model: str, hook: str = "blocks.0.mlp_out", k: int = 4):
        return read(STUDY.format(model=model, hook=hook, k=k))

    return study


@pytest.fixture
def faults(study):
    def faults(*args, **settings) -> str:
        with pytest.raises(StudyError) as caught:
            study(*args, **settings)
        return str(caught.value)

    return faults


def test_a_folder_tells_hooks_and_widths_and_what_is_read_from_it(study, faults, folder):
    model = f"architecture: hub, name: {folder()}"
    parsed = study(model, hook="blocks.1.mlp_hidden, blocks.0.resid_mid")
    assert parsed.width("acts", "blocks.1.mlp_hidden") == 28
    assert parsed.width("acts", "blocks.0.resid_mid") == 16
    assert parsed.models["it"].sources() == [str(folder() / "config.json"), str(folder() / "model.safetensors")]
    assert "training" not in parsed.models["it"].settings()
    text = faults(model, hook="blocks.2.mlp_out")
    assert (
        "activations.acts.hooks[0]: 'blocks.2.mlp_out' is not a hook of it; did you mean 'blocks.1.mlp_out'? (blocks.0.resid_pre, " in text
    )
    assert "k" in faults(model, k=40)


@pytest.mark.parametrize(
    ("config", "hook", "expected"),
    [
        ({"model_type": "gpt2", "n_layer": 1, "n_embd": 8}, "mlp_hidden", 32),
        ({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_inner": None}, "mlp_hidden", 32),
        ({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_inner": 20}, "mlp_hidden", 20),
        ({"model_type": "gpt_neo", "num_layers": 1, "hidden_size": 8, "intermediate_size": None}, "mlp_hidden", 32),
        ({"model_type": "gpt_neox", "num_hidden_layers": 1, "hidden_size": 8, "use_parallel_residual": False}, "resid_mid", 8),
        ({"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8}, "mlp_hidden", None),
    ],
    ids=str,
)
def test_widths_from_a_configuration(config, hook, expected):
    assert hub_families.hooks(config)[f"blocks.0.{hook}"] == expected


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
        ({"model_type": "distilbert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "unknown", "max_position_embeddings": 514, "pad_token_id": 1}, 514),
        ({"model_type": "unknown"}, None),
    ],
    ids=str,
)
def test_the_longest_text_from_a_configuration(config, tokens):
    assert hub_families.longest(config) == tokens


def test_angles_that_depend_on_the_length_of_a_text():
    for kind, yes in (("default", False), ("llama3", False), ("yarn", False), ("longrope", True), ("dynamic", True)):
        assert hub_families.scales_with_length({"rope_parameters": {"rope_type": kind}}) == yes
        assert hub_families.scales_with_length({"rope_parameters": {"full_attention": {"rope_type": kind}}}) == yes
    assert not hub_families.scales_with_length({})
    assert not hub_families.scales_with_length({"rope_parameters": None})


def test_a_parallel_block_has_no_middle(faults, folder):
    neox = {**LLAMA, "model_type": "gpt_neox"}
    text = faults(f"architecture: hub, name: {folder(neox)}", hook="blocks.0.resid_mid")
    assert "'blocks.0.resid_mid' is not a hook of it" in text
    assert "(blocks.0.resid_pre, blocks.0.attn_out, blocks.0.mlp_hidden, " in text


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ("name: ./none", "models.it.name: there is no folder './none', and no model on the hub can be called so"),
        ("name: '{folder}', revision: main", "models.it.revision: only a model on the hub has one, and name is a folder"),
        ("name: '{folder}', context: 300", "models.it.context: 300: the model takes at most 256 tokens"),
        ("name: '{folder}', training: {{steps: 3}}", "models.it.training: 'training' is not a setting"),
        ("name: '{folder}', modules: {{x: 'output of y'}}", "models.it.modules.x: the dotted path of a module is expected"),
        ("name: '{folder}', modules: {{'a/b': y}}", "models.it.modules.a/b: a name becomes a folder"),
        ("name: '{folder}', dtype: float64", "models.it.dtype: 'float64' is not allowed here"),
    ],
    ids=lambda value: value[:30],
)
def test_faults_of_a_folder(faults, folder, settings, fault):
    assert fault in faults(f"architecture: hub, {settings.format(folder=folder())}")


def test_folders_that_lack_something(faults, folder):
    where = folder()
    model = f"architecture: hub, name: {where}"
    (where / "model.safetensors").unlink()
    assert f"models.it.name: {where} has no weights (model.safetensors or pytorch_model.bin" in faults(model)
    (where / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1-of-1.safetensors"}}))
    assert f"models.it.name: {where} lacks model-1-of-1.safetensors, which its index names" in faults(model)
    (where / "model.safetensors.index.json").write_text("[]")
    assert "is not readable as an index of parts" in faults(model)
    (where / "config.json").unlink()
    assert f"models.it.name: {where} has no config.json" in faults(model)


def test_an_unknown_family_has_the_hooks_that_it_is_given(study, faults, folder):
    granite = {**LLAMA, "model_type": "granite"}
    model = f"architecture: hub, name: {folder(granite)}"
    text = faults(model)
    assert "models.it.modules: the family 'granite' is not one whose hooks are known (bert, camembert, " in text
    model += ", modules: {blocks.0.mlp_out: model.layers.0.mlp}"
    assert study(model).width("acts", "blocks.0.mlp_out") is None
    assert "'blocks.1.mlp_out' is not a hook of it" in faults(model, hook="blocks.1.mlp_out")


def test_names_on_the_hub_are_checked_by_their_form_until_they_are_fetched(study, faults, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_files, "cached_config", lambda name, revision: None)
    model = "architecture: hub, name: owner/model, modules: {mine: model.norm}"
    parsed = study(model, hook="blocks.31.mlp_hidden, mine")
    assert parsed.models["it"].hooks() is None
    assert parsed.width("acts", "mine") is None
    assert parsed.models["it"].sources() == []
    text = faults(model, hook="block.3.mlp_hidden")
    assert "'block.3.mlp_hidden' cannot be a hook; allowed: blocks.N. and one of resid_pre, " in text
    assert "or one of modules: mine" in text
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setattr(hub_files, "cached_config", lambda name, revision: tmp_path / "config.json")
    assert "is not a hook of it" in faults(model, hook="blocks.31.mlp_hidden")
    assert study(model).width("acts", "blocks.0.mlp_out") == 16


def test_the_hubs_cache_is_found_without_the_network(tmp_path, monkeypatch):
    folder = tmp_path / "models--owner--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = Hub.model_validate({"architecture": "hub", "dataset": "d", "name": "owner/model"})
    assert hub.config() == LLAMA
    assert Hub.model_validate({"architecture": "hub", "dataset": "d", "name": "owner/other"}).config() is None
    assert Hub.model_validate({"architecture": "hub", "dataset": "d", "name": "owner/model", "revision": "v2"}).config() is None


def test_a_study_with_a_model_from_the_hub_loads_nothing_heavy(folder, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model="architecture: hub, name: owner/model", hook="blocks.0.mlp_out", k=4))
    program = (
        "import sys\nfrom pipeline.study.open import read_study\n"
        f"read_study([{str(file)!r}])\nassert not {{'torch', 'transformers', 'numpy'}} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_faults_of_a_nanochat_checkpoint(faults, tmp_path):
    model = "architecture: nanochat, "
    assert f"models.it.checkpoint: there is no folder '{tmp_path}/none'" in faults(model + f"checkpoint: {tmp_path}/none")
    assert f"models.it.checkpoint: '{tmp_path}' has no file model_XXXXXX.pt" in faults(model + f"checkpoint: {tmp_path}")
    (tmp_path / "model_000003.pt").touch()
    assert re.search(r"models\.it\.checkpoint: .* has model_000003\.pt and no meta_000003\.json", faults(model + f"checkpoint: {tmp_path}"))
    assert "models.it.step: there is no checkpoint" in faults(model + "step: 3")
    assert "models.it.kv_heads: 4 does not divide heads 6" in faults(model + "heads: 6, width: 12, kv_heads: 4")
    assert "models.it.heads: a head is 3 wide" in faults(model + "heads: 4, width: 12")


def test_the_hooks_of_a_nanochat_checkpoint(study, faults, tmp_path):
    config = {"sequence_len": 32, "vocab_size": 300, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 8}
    (tmp_path / "model_000003.pt").touch()
    (tmp_path / "meta_000003.json").write_text(json.dumps({"model_config": config}))
    model = f"architecture: nanochat, checkpoint: {tmp_path}"
    parsed = study(model, hook="blocks.1.mlp_hidden")
    assert parsed.width("acts", "blocks.1.mlp_hidden") == 32
    assert parsed.models["it"].context == 32
    assert parsed.models["it"].settings()["training"] == {"batch": 32}
    assert "is not a hook of it" in faults(model, hook="blocks.2.mlp_hidden")
    assert "models.it.layers: the checkpoint has its own" in faults(model + ", layers: 2")
    for context in (33, "'33'", "1e3"):
        assert re.search(r"models\.it\.context: \d+: the checkpoint was trained with 32 tokens", faults(f"{model}, context: {context}"))
    assert study(f"{model}, context: '31'").models["it"].context == 31
    given = "layers: 2, width: 8, heads: 2, kv_heads: 1"
    assert "models.it.context: 4096: the checkpoint was trained with 32 tokens" in faults(f"{model}, {given}, context: 4096")
    assert "models.it.kv_heads: 2 is given, and the checkpoint" in faults(f"{model}, {given.replace('1', '2')}, context: 9")
