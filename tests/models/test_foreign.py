"""Weights that others wrote and that are spoiled: one line that names the file or the weight, whatever reads them."""

import io
import json
import random
import re
import warnings

import pytest
import torch
import transformers as hf
from families import CONTEXT, VOCABULARY, write

from pipeline.artifacts.errors import UserError
from pipeline.models import hub, nanochat
from pipeline.study.models.nanochat import Nanochat

FACTS = {"form": "tokens", "vocabulary": 7}
CONFIG = {"sequence_len": 8, "vocab_size": 7, "n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 8}
SPEC = {"architecture": "nanochat", "dataset": "d", "layers": 1, "width": 8, "heads": 2, "kv_heads": 2, "context": 8}
Q = "transformer.h.0.attn.c_q.weight"


def saved(content, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def spoiled(zipped: bool, seed: int) -> bytes:
    """A state dict with a few bytes of its first half changed."""
    drawn = random.Random(seed)
    content = bytearray(saved({"a": torch.ones(3)}, zipped))
    for _ in range(4):
        content[drawn.randrange(len(content) // 2)] = drawn.randrange(256)
    return bytes(content)


JUNK = {
    "empty": b"",
    "struct": b"\x80\x02J\x01",
    "index": b"\x80\x02.",
    "text": b"junk junk junk junk",
    "zip": b"PK\x03\x04" + b"x" * 50,
    "code": b"cos\nsystem\n(S'true'\ntR.",
    "list": saved([1, 2]),
    **{f"old-{seed}": spoiled(False, seed) for seed in range(12)},
    **{f"new-{seed}": spoiled(True, seed) for seed in range(4)},
}


@pytest.fixture
def chat(tmp_path):
    """A checkpoint of nanochat's: `chat(state dict, or the bytes of its file)` fetches it."""

    def chat(content):
        (tmp_path / "meta_000001.json").write_text(json.dumps({"model_config": CONFIG}))
        (tmp_path / "model_000001.pt").write_bytes(content if isinstance(content, bytes) else saved(content))
        spec = Nanochat.model_validate({"architecture": "nanochat", "dataset": "d", "checkpoint": str(tmp_path)})
        return nanochat.fetch(spec, FACTS)[0]

    return chat


@pytest.fixture
def weights(build) -> dict:
    return build(FACTS, **{key: value for key, value in SPEC.items() if key != "dataset"})[0].state_dict()


@pytest.fixture
def taken(tmp_path):
    """A model of Hugging Face's: `taken(bytes of its pickled weights)` fetches it; None leaves those that it has."""

    def taken(content: bytes | None = None, name: str = "llama", **settings):
        folder = tmp_path / name
        if not folder.is_dir():
            write(tmp_path, name)
        if content is not None:
            (folder / "model.safetensors").unlink(missing_ok=True)
            (folder / "pytorch_model.bin").write_bytes(content)
        spec = hub.Spec.model_validate({"architecture": "hub", "dataset": "d", "name": str(folder), "context": CONTEXT, **settings})
        return hub.fetch(spec, {"form": "tokens", "vocabulary": VOCABULARY})[0]

    return taken


def refused(fetch, *args, **settings) -> str:
    """The one line that is said; nothing else is."""
    with warnings.catch_warnings(), pytest.raises(UserError) as caught:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=ResourceWarning)
        fetch(*args, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    assert "weights_only" not in text
    assert "arbitrary" not in text
    return text


@pytest.mark.parametrize("name", JUNK)
def test_files_that_are_no_weights_are_one_line(chat, taken, name):
    assert re.search(
        r"model_000001\.pt (cannot be read as plain tensors \(|is not a state dict)|checkpoint '.*' ", refused(chat, JUNK[name])
    )
    assert re.search(r"model '.*': (transformers .* cannot load it \(|its weights lack)", refused(taken, JUNK[name]))


def test_what_a_file_holds_besides_tensors_is_named(chat, taken):
    assert refused(chat, JUNK["code"]).endswith("cannot be read as plain tensors (it holds os.system, and nothing but tensors is read)")
    assert refused(taken, JUNK["code"]).endswith("cannot load it (it holds os.system, and nothing but tensors is read)")
    assert refused(chat, b"").endswith("cannot be read as plain tensors (EOFError)")
    assert refused(taken, b"").endswith("cannot load it (EOFError)")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(8, 8).to_sparse(), f"{Q} is sparse_coo, float32, and a dense tensor of floating-point numbers is expected"),
        (torch.ones(8, 8, dtype=torch.int64), f"{Q} is strided, int64, and a dense tensor"),
        (torch.ones(8, 8, dtype=torch.complex64), f"{Q} is strided, complex64, and a dense tensor"),
        (torch.ones(8, 8, device="meta"), f"{Q} is a tensor without values"),
        (torch.tensor(1.0), f"has another shape for {Q}"),
    ],
    ids=["sparse", "whole", "complex", "meta", "number"],
)
def test_weights_that_nothing_can_be_computed_with_are_named(chat, weights, value, message):
    assert message in refused(chat, {**weights, Q: value})


@pytest.mark.parametrize("name", ["transformer.wte.weight", "lm_head.weight"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 8), (7, 8, 1)], ids=str)
def test_rows_are_cut_off_only_where_there_are_some(chat, weights, name, shape):
    assert refused(chat, {**weights, name: torch.ones(shape)}).endswith(f"has another shape for {name}")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(chat, taken, weights, bad):
    spoil = {name: value.clone() for name, value in weights.items()}
    spoil[Q][3, 2] = bad
    assert refused(chat, spoil).endswith(f": {Q} holds NaN or infinity in float32")
    network = taken().network
    network.model.layers[1].mlp.down_proj.weight[0, 5] = bad
    text = refused(taken, saved(network.state_dict()))
    assert text.endswith(": model.layers.1.mlp.down_proj.weight holds NaN or infinity in float32")


def test_rows_of_padding_may_hold_anything_and_a_narrow_type_has_to_hold_all(chat, taken, weights):
    padded = torch.cat([weights["lm_head.weight"], torch.full((2, 8), float("nan"))])
    assert chat({**weights, "lm_head.weight": padded}).lm_head.weight.shape == (7, 8)
    assert "holds NaN or infinity in float32" in refused(chat, {**weights, Q: torch.full((8, 8), 1e300, dtype=torch.float64)})
    network = taken().network
    network.model.norm.weight[0] = 1e6
    content = saved(network.state_dict())
    assert taken(content).network.model.norm.weight[0] == 1e6
    assert refused(taken, dtype="float16").endswith(": model.norm.weight holds NaN or infinity in float16")


def test_an_index_of_parts_names_files(tmp_path, taken):
    folder = write(tmp_path, "llama")
    (folder / "model.safetensors").unlink()
    for names in ({"a": 3}, {}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        assert "is not readable as an index of parts" in refused(taken)


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "camembert"])
def test_positions_after_that_of_padding_are_fewer(taken, name):
    """RoBERTa's first token has position pad_token_id + 1."""
    ids = torch.full((1, CONTEXT), 5)
    assert taken(name=name)(ids).shape == (1, CONTEXT, 16)
    assert refused(taken, name=name, context=CONTEXT + 1).endswith(f"takes at most {CONTEXT} tokens")
    assert refused(taken, name=name, context=CONTEXT + 2).endswith(f"takes at most {CONTEXT} tokens")


def test_the_context_of_an_unknown_family_is_tried(taken, tmp_path):
    """Of one that counts positions as RoBERTa does and is not in the table."""
    folder = write(tmp_path, "roberta")
    config = json.loads((folder / "config.json").read_text())
    other = {"model_type": "roberta-prelayernorm", "architectures": ["RobertaPreLayerNormModel"]}
    (folder / "config.json").write_text(json.dumps({**config, **other}))
    modules = {"x": "encoder.layer.0"}
    hf.RobertaPreLayerNormModel(hf.RobertaPreLayerNormConfig(**{**config, **other})).save_pretrained(folder)
    assert taken(name="roberta", modules=modules).context == CONTEXT
    text = refused(taken, name="roberta", modules=modules, context=CONTEXT + 2)
    assert re.search(rf"context: {CONTEXT + 2}: the model '.*' cannot read a text of so many tokens \(\w+: ", text)
