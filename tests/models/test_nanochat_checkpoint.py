"""nanochat's own checkpoints: taken over with equal logits, kept whole in the artifact, and refused where they are not understood."""

import json
import re

import pytest
import torch
from pydantic import ValidationError

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact, sha256
from pipeline.artifacts.publishing import publishing
from pipeline.models import checkpoint
from pipeline.models.nanochat import fetch
from pipeline.study.models.nanochat import Nanochat

CONFIG = {"sequence_len": 8, "vocab_size": 11, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16}
SHAPE = {"architecture": "nanochat", "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "context": 8}
FACTS = {"form": "tokens", "vocabulary": 11}


@pytest.fixture
def model(build):
    return build(FACTS, **SHAPE)[0]


@pytest.fixture
def write(tmp_path, model):
    """Writes the model as nanochat does, `write(step)`: weights of a compiled model, the embedding in bfloat16."""

    def write(step: int = 650, weights: dict | None = None, config: dict | None = None, name: str = "checkpoints") -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        with torch.no_grad():
            model.transformer["wte"].weight.copy_(model.transformer["wte"].weight.bfloat16())
        state = {f"_orig_mod.{key}": value.clone() for key, value in (weights or model.state_dict()).items()}
        state["_orig_mod.transformer.wte.weight"] = state["_orig_mod.transformer.wte.weight"].bfloat16()
        torch.save(state, folder / f"model_{step:06d}.pt")
        meta = {"step": step, "val_bpb": 1.0, "model_config": config or CONFIG, "user_config": {"depth": 2}}
        (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
        return str(folder)

    return write


def spec(folder: str, **settings) -> Nanochat:
    return Nanochat.model_validate({"architecture": "nanochat", "dataset": "d", "checkpoint": folder, **settings})


def test_its_shape_and_logits_are_the_checkpoints(write, model, ids):
    parsed = spec(write())
    assert (parsed.layers, parsed.width, parsed.heads, parsed.kv_heads, parsed.context) == (2, 16, 4, 2, 8)
    assert parsed.hooks()["blocks.1.mlp_hidden"] == 64
    assert parsed.pretrained()
    loaded, _ = fetch(parsed, FACTS)
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    assert torch.equal(loaded(ids), model(ids))


def test_the_artifact_needs_the_folder_no_more(write, model, ids, tmp_path):
    parsed = spec(write(), context=6)
    taken = parsed.settings()
    loaded, settings, facts = checkpoint.fetched(taken, FACTS)
    assert settings.scoring_batch() == parsed.training.batch
    with publishing(tmp_path / "artifact", "model", taken, {}) as draft:
        checkpoint.save(draft, loaded, taken, facts)
    for file in (tmp_path / "checkpoints").iterdir():
        assert facts["source"]["files"][file.name] == sha256(file)
        file.unlink()
    artifact = Artifact.open(tmp_path / "artifact" / MANIFEST)
    again = checkpoint.load(artifact)
    assert torch.equal(again(ids), model(ids))
    assert again.context == 6
    assert checkpoint.settings(artifact.spec).hooks() == parsed.hooks()


def test_the_last_step_is_taken_unless_another_is_named(write, model, ids):
    zero = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    write(9000)
    folder = write(10000, weights=zero)
    assert not fetch(spec(folder), FACTS)[0](ids).any()
    assert torch.equal(fetch(spec(folder, step=9000), FACTS)[0](ids), model(ids))
    assert [path.rsplit("/", 1)[1] for path in spec(folder).sources()] == ["model_010000.pt", "meta_010000.json"]
    with pytest.raises(ValidationError, match=r"checkpoint: .* has no step 7 \(it has: 9000, 10000\)"):
        spec(folder, step=7)


def test_rows_of_padding_are_left_out_and_a_smaller_dataset_leaves_the_vocabulary(write, model, ids):
    weights = model.state_dict()
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.full((5, 16), 9.0)])
    loaded, _ = fetch(spec(write(weights=weights)), {**FACTS, "vocabulary": 7})
    assert torch.equal(loaded(ids), model(ids))
    with pytest.raises(UserError, match=r"vocabulary has 12 tokens, and that of the checkpoint .* has 11"):
        fetch(spec(write()), {**FACTS, "vocabulary": 12})


def test_weights_of_another_nanochat_are_named(write, model):
    more = {**model.state_dict(), "resid_lambdas": torch.ones(2), "value_embeds.0.weight": torch.ones(11, 8)}
    with pytest.raises(UserError, match=r"not known here.*: resid_lambdas, value_embeds.0.weight$"):
        fetch(spec(write(weights=more)), FACTS)
    fewer = {name: value for name, value in model.state_dict().items() if not name.startswith("transformer.h.1.mlp")}
    with pytest.raises(UserError, match=r"lacks transformer.h.1.mlp.c_fc.weight, transformer.h.1.mlp.c_proj.weight$"):
        fetch(spec(write(weights=fewer)), FACTS)
    with pytest.raises(UserError, match=r"has another shape for transformer.h.0.attn.c_k.weight"):
        fetch(spec(write(config={**CONFIG, "n_kv_head": 4})), FACTS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "window_pattern": "SSSL"}, "model_config has window_pattern, of a nanochat that is not known here"),
        ({key: value for key, value in CONFIG.items() if key != "n_head"}, "model_config lacks n_head"),
        ({**CONFIG, "n_embd": "16"}, "n_embd is '16', and a whole number is expected"),
    ],
    ids=["later", "lacks", "text"],
)
def test_a_description_that_is_not_understood(write, config, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        spec(write(config=config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 2}, "layers: the checkpoint has its own; leave out layers"),
        ({"training": {"steps": 5, "batch": 4}}, "training: a checkpoint is not trained here, so steps would mean nothing"),
        ({"step": "last"}, "step"),
    ],
    ids=["shape", "training", "step"],
)
def test_what_cannot_be_set_beside_a_checkpoint(write, settings, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        spec(write(), **settings)


def test_shapes_that_are_given_have_to_be_the_checkpoints(write):
    given = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 2}
    with pytest.raises(UserError, match=r"heads: 2 is given, and the checkpoint .* has 4"):
        fetch(spec(write(), **given), FACTS)


@pytest.mark.parametrize("context", [9, "9", 9.0, "1e3", 4096])
@pytest.mark.parametrize("given", [{}, {key: SHAPE[key] for key in ("layers", "width", "heads", "kv_heads")}], ids=["own", "given"])
def test_more_tokens_than_it_was_trained_with_are_refused_however_they_are_written(write, context, given):
    """By the study, and where the checkpoint is read: settings that hold all of the shape are those of a step as well."""
    asked = spec(write(), context=context, **given)
    message = f"context: {asked.context}: the checkpoint was trained with 8 tokens"
    assert asked.problems() == [message]
    with pytest.raises(UserError, match=message):
        fetch(asked, FACTS)
    assert spec(write(), context="8", **given).problems() == []


def test_a_shape_is_compared_where_a_study_is_parsed(write, tmp_path):
    given = {"layers": 2, "width": 16, "heads": 2, "kv_heads": None, "context": 8}
    assert spec(write(), **given).problems() == [f"heads: 2 is given, and the checkpoint '{tmp_path}/checkpoints' has 4"]
    assert spec(str(tmp_path / "none"), **given).problems() == [f"checkpoint: there is no folder '{tmp_path}/none'"]


def test_its_folder_is_also_looked_for_in_the_data_folder(write, model, ids, tmp_path, monkeypatch):
    write()
    monkeypatch.setenv("SAEFLOW_DATA", str(tmp_path))
    parsed = spec("checkpoints")
    assert parsed.sources()[0] == str(tmp_path / "checkpoints" / "model_000650.pt")
    assert torch.equal(fetch(parsed, FACTS)[0](ids), model(ids))
    with pytest.raises(ValidationError, match="there is no folder 'others'"):
        spec("others")


def test_a_file_that_runs_code_when_unpickled_is_refused(write, tmp_path):
    folder = write()
    (tmp_path / "checkpoints" / "model_000650.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        fetch(spec(folder), FACTS)
    torch.save([1, 2], tmp_path / "checkpoints" / "model_000650.pt")
    with pytest.raises(UserError, match="not a state dict"):
        fetch(spec(folder), FACTS)
