"""nanochat's architecture: an own transcription in float64, transformers' as a second opinion, and groups of heads."""

from math import log

import pytest
import torch
from torch.nn import functional as F
from transformers import NanoChatConfig, NanoChatForCausalLM

from pipeline.models import checkpoint
from pipeline.models.hooks import spliced
from pipeline.models.nanochat import Model
from pipeline.study.models.nanochat import Nanochat

FACTS = {"vocabulary": 11}
SHAPE = {"architecture": "nanochat", "layers": 3, "width": 24, "heads": 6, "kv_heads": 2, "context": 8}


@pytest.fixture
def model(build):
    return build(FACTS, **SHAPE)[0]


def seen_by(model, ids) -> tuple[dict, torch.Tensor]:
    """Every hook's value in the order of the forward, and the logits."""
    found = {}
    with torch.no_grad():
        logits = model(ids, lambda name, value: found.setdefault(name, value))
    return found, logits


def transcribed(weights: dict, ids: torch.Tensor, layers: int, heads: int, kv_heads: int) -> tuple[dict, torch.Tensor]:
    """The whole model in float64, one sequence, one head and one pair of positions at a time."""
    W = {name: value.double() for name, value in weights.items()}

    def rms(x):
        return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    def turned(x):
        half = len(x[0]) // 2
        out = torch.empty_like(x)
        for position in range(len(x)):
            for pair in range(half):
                angle = torch.tensor(position / 10000 ** (pair / half), dtype=torch.float64)
                a, b = x[position, pair], x[position, pair + half]
                out[position, pair] = a * angle.cos() + b * angle.sin()
                out[position, pair + half] = b * angle.cos() - a * angle.sin()
        return out

    found, all_logits = {}, []
    for sequence in ids:
        x = rms(W["transformer.wte.weight"][sequence])
        T, C = x.shape
        D = C // heads
        for n in range(layers):
            at = f"transformer.h.{n}"
            normed, parts = rms(x), []
            found.setdefault(f"blocks.{n}.resid_pre", []).append(x)
            for head in range(heads):
                own, shared = slice(head * D, head * D + D), head // (heads // kv_heads)
                theirs = slice(shared * D, shared * D + D)
                q = rms(turned(normed @ W[f"{at}.attn.c_q.weight"][own].T))
                k = rms(turned(normed @ W[f"{at}.attn.c_k.weight"][theirs].T))
                v = normed @ W[f"{at}.attn.c_v.weight"][theirs].T
                rows = [((q[t] @ k[: t + 1].T) / D**0.5).softmax(-1) @ v[: t + 1] for t in range(T)]
                parts.append(torch.stack(rows))
            attn = torch.cat(parts, -1) @ W[f"{at}.attn.c_proj.weight"].T
            middle = x + attn
            hidden = (rms(middle) @ W[f"{at}.mlp.c_fc.weight"].T).clamp(min=0) ** 2
            out = hidden @ W[f"{at}.mlp.c_proj.weight"].T
            x = middle + out
            for hook, value in (("attn_out", attn), ("resid_mid", middle), ("mlp_hidden", hidden), ("mlp_out", out), ("resid_post", x)):
                found.setdefault(f"blocks.{n}.{hook}", []).append(value)
        all_logits.append(15 * ((rms(x) @ W["lm_head.weight"].T) / 15).tanh())
    return {hook: torch.stack(values) for hook, values in found.items()}, torch.stack(all_logits)


def test_every_hook_and_logit_is_what_the_transcription_has(model, ids):
    found, logits = seen_by(model, ids)
    expected, wanted = transcribed(model.state_dict(), ids, 3, 6, 2)
    assert list(found) == list(expected)
    for hook, value in expected.items():
        torch.testing.assert_close(found[hook].double(), value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-4, atol=1e-4)
    assert logits.abs().max() > 3, "logits so small that the cap would not be seen"


def test_in_float64_it_is_the_transcription_to_the_last_digits(model, ids):
    """The one difference left is the norms' epsilon, that of the type computed in."""
    _, wanted = transcribed(model.state_dict(), ids, 3, 6, 2)
    torch.testing.assert_close(model.double()(ids), wanted, rtol=1e-4, atol=1e-5)


def test_transformers_computes_the_same(model, ids):
    theirs = NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=11, hidden_size=24, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
            max_position_embeddings=8, rms_norm_eps=torch.finfo(torch.float32).eps, pad_token_id=None,
        )
    ).eval()  # fmt: skip
    names = {
        "transformer.wte": "model.embed_tokens", "transformer.h": "model.layers", "attn.c_q": "self_attn.q_proj",
        "attn.c_k": "self_attn.k_proj", "attn.c_v": "self_attn.v_proj", "attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    weights = model.state_dict()
    for ours, its in names.items():
        weights = {name.replace(ours, its): value for name, value in weights.items()}
    theirs.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_hooks_are_those_the_study_knows_with_their_widths(build, ids):
    model, spec = build(FACTS, **SHAPE)
    found, _ = seen_by(model, ids)
    assert {name: value.shape[-1] for name, value in found.items()} == spec.hooks()
    assert spec.hooks()["blocks.2.mlp_hidden"] == 96


def test_the_stream_adds_up_and_the_hidden_layer_is_the_last_maps_input(model, ids):
    found, _ = seen_by(model, ids)
    for n, block in enumerate(model.transformer["h"]):
        at = {hook: found[f"blocks.{n}.{hook}"] for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "resid_post")}
        assert torch.equal(at["resid_mid"], at["resid_pre"] + at["attn_out"])
        assert torch.equal(at["resid_post"], at["resid_mid"] + at["mlp_out"])
        assert torch.equal(at["mlp_out"], F.linear(at["mlp_hidden"], block.mlp.c_proj.weight))
        assert (at["mlp_hidden"] >= 0).all()


def test_shared_keys_and_values_are_repeated_ones(build, ids):
    few, _ = build(FACTS, **SHAPE)
    many, _ = build(FACTS, **{**SHAPE, "kv_heads": None})
    weights = few.state_dict()
    for name in list(weights):
        if name.endswith(("c_k.weight", "c_v.weight")):
            weights[name] = weights[name].view(2, 4, 24).repeat_interleave(3, dim=0).reshape(24, 24)
    many.load_state_dict(weights)
    torch.testing.assert_close(many(ids), few(ids), rtol=1e-5, atol=1e-5)


def test_a_later_token_changes_no_earlier_logit_and_its_own(model, ids):
    with torch.no_grad():
        before = model(ids)
        for changed in range(8):
            other = ids.clone()
            other[:, changed] = (other[:, changed] + 1) % 11
            after = model(other)
            assert torch.equal(after[:, :changed], before[:, :changed])
            assert (after[:, changed] != before[:, changed]).any(1).all()


@pytest.mark.parametrize("hook", ["resid_pre", "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "resid_post"])
def test_splicing_in_the_same_value_changes_not_one_bit_and_zero_does(model, ids, hook):
    name = f"blocks.1.{hook}"
    assert torch.equal(spliced(model, ids, name, lambda x: x.clone()), model(ids))
    assert not torch.equal(spliced(model, ids, name, torch.zeros_like), model(ids))


@pytest.mark.parametrize("kv_heads", [None, 1, 2])
def test_the_number_of_parameters(kv_heads):
    """2 V C, and in each block 2 C^2 for queries and output, 2 C^2 kv_heads / heads for keys and values, 8 C^2 for the MLP."""
    spec = Nanochat.model_validate(
        {"architecture": "nanochat", "dataset": "d", "layers": 5, "width": 256, "heads": 2, "kv_heads": kv_heads}
    )
    with torch.device("meta"):
        model = Model(spec, {"vocabulary": 1000})
    assert sum(p.numel() for p in model.parameters()) == 2 * 1000 * 256 + 5 * (2 + (kv_heads or 2) + 8) * 256**2


def test_initial_weights():
    model, _ = checkpoint.build({"architecture": "nanochat", "layers": 2, "width": 128, "heads": 4, "kv_heads": 1}, {"vocabulary": 300})
    for name, parameter in model.named_parameters():
        if name.endswith(("c_proj.weight", "lm_head.weight")):
            assert not parameter.any()
            continue
        narrowing = 0.5 if name.endswith(("c_k.weight", "c_v.weight")) else 1.0  # sqrt(32 / 128)
        expected = 1.0 if "wte" in name else narrowing * 128**-0.5
        assert parameter.std().item() == pytest.approx(expected, rel=0.05)
    ids = torch.arange(64)[None]
    assert model.losses(model(ids), ids).mean().item() == pytest.approx(log(300), abs=1e-5)


def test_it_learns_and_takes_bfloat16(ids):
    model, _ = checkpoint.build(SHAPE, FACTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.losses(model(ids), ids).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 1.0 < log(11)


def test_a_session_goes_on_as_the_whole_text_does(model, ids):
    feed = model.session()
    with torch.no_grad():
        feed(ids[0, :3])
        torch.testing.assert_close(feed(ids[0, 3:8]), model(ids[:1])[0, -1])
