"""The language model: size, causality, what each hook is, and PyTorch's own transformer as a second opinion."""

from math import log

import pytest
import torch
from torch import nn

from pipeline.models import checkpoint
from pipeline.models.gpt import Model
from pipeline.study.models.gpt import GPT

FACTS = {"vocabulary": 11}


def seen_by(model, ids) -> tuple[dict, torch.Tensor]:
    """Every hook's value in the order of the forward, and the logits."""
    found = {}
    with torch.no_grad():
        logits = model(ids, lambda name, value: found.setdefault(name, value))
    return found, logits


def test_the_published_size():
    spec = GPT.model_validate(
        {"architecture": "gpt", "dataset": "d", "layers": 6, "width": 384, "heads": 6, "mlp_width": 1536, "context": 512}
    )
    with torch.device("meta"):
        model = Model(spec, {"vocabulary": 50257})
    assert sum(p.numel() for p in model.parameters()) == 30_122_112
    assert spec.hooks()["blocks.3.mlp_hidden"] == 1536


def test_a_later_token_changes_no_earlier_logit_and_its_own(gpt, ids):
    with torch.no_grad():
        before = gpt(ids)
        for changed in range(8):
            other = ids.clone()
            other[:, changed] = (other[:, changed] + 1) % 11
            after = gpt(other)
            assert torch.equal(after[:, :changed], before[:, :changed])
            assert (after[:, changed] != before[:, changed]).any(1).all()


def test_every_earlier_token_is_seen(gpt, ids):
    with torch.no_grad():
        before = gpt(ids)[:, -1]
        for changed in range(8):
            other = ids.clone()
            other[:, changed] = (other[:, changed] + 1) % 11
            assert (gpt(other)[:, -1] != before).any(1).all()


def test_sequences_do_not_see_each_other_and_may_be_short(gpt, ids):
    with torch.no_grad():
        together = gpt(ids)
        for n in range(4):
            torch.testing.assert_close(gpt(ids[n : n + 1, :5])[0], together[n, :5], rtol=1e-4, atol=1e-5)


def test_the_order_of_tokens_counts(gpt):
    with torch.no_grad():
        assert not torch.allclose(gpt(torch.tensor([[1, 2, 3]]))[0, -1], gpt(torch.tensor([[2, 1, 3]]))[0, -1])


def test_the_residual_stream_adds_up(gpt, ids):
    found, _ = seen_by(gpt, ids)
    for n in range(3):
        at = {hook: found[f"blocks.{n}.{hook}"] for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")}
        assert torch.equal(at["resid_mid"], at["resid_pre"] + at["attn_out"])
        assert torch.equal(at["resid_post"], at["resid_mid"] + at["mlp_out"])
        if n:
            assert torch.equal(at["resid_pre"], found[f"blocks.{n - 1}.resid_post"])
    assert torch.equal(found["blocks.0.resid_pre"], gpt.token.weight[ids] + gpt.position.weight)


def test_hooks_are_those_the_study_knows_with_their_widths(build, ids):
    model, spec = build(FACTS, architecture="gpt", layers=2, width=8, heads=2, context=8)
    found, _ = seen_by(model, ids)
    assert {name: value.shape[-1] for name, value in found.items()} == spec.hooks()
    assert spec.hooks()["blocks.1.mlp_hidden"] == 32


def test_the_head_is_the_embedding_after_a_norm(gpt, ids):
    found, logits = seen_by(gpt, ids)
    x = found["blocks.2.resid_post"].double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = (x * gpt.norm.weight + gpt.norm.bias) @ gpt.token.weight.double().T
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_block_is_pytorchs_own_pre_ln_layer(gpt, ids):
    found, _ = seen_by(gpt, ids)
    for n, block in enumerate(gpt.blocks):
        layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True).eval()
        ours, theirs = block.state_dict(), layer.state_dict()
        for mine, its in {
            "norm1.weight": "norm1.weight", "norm1.bias": "norm1.bias", "norm2.weight": "norm2.weight", "norm2.bias": "norm2.bias",
            "qkv.weight": "self_attn.in_proj_weight", "attn_out.weight": "self_attn.out_proj.weight",
            "mlp_in.weight": "linear1.weight", "mlp_out.weight": "linear2.weight",
        }.items():  # fmt: skip
            theirs[its] = ours[mine]
        layer.load_state_dict({name: torch.zeros_like(value) if name not in SHARED else value for name, value in theirs.items()})
        assert len(ours) == len(SHARED)
        with torch.no_grad():
            expected = layer(found[f"blocks.{n}.resid_pre"], nn.Transformer.generate_square_subsequent_mask(8), is_causal=True)
        torch.testing.assert_close(found[f"blocks.{n}.resid_post"], expected, rtol=1e-4, atol=1e-4)


SHARED = {
    "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight",
    "linear2.weight",
}  # fmt: skip


def test_initial_weights_have_gpt2s_spread():
    model, _ = checkpoint.build({"architecture": "gpt", "layers": 8, "width": 64, "heads": 4}, {"vocabulary": 300})
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
            continue
        expected = 0.02 / 4 if name.endswith(("attn_out.weight", "mlp_out.weight")) else 0.02  # 4 = sqrt(2 * 8 layers)
        assert parameter.std().item() == pytest.approx(expected, rel=0.05)
        assert abs(parameter.mean().item()) < 5 * expected / parameter.numel() ** 0.5
    logits = model(torch.arange(64)[None])
    assert model.losses(logits, torch.arange(1, 65)[None]).mean().item() == pytest.approx(log(300), rel=0.02)


def test_the_loss_is_the_cross_entropy_of_each_next_token_in_nats(gpt):
    logits = torch.tensor([[[0.0, 0.0], [log(3.0), 0.0]]])
    assert gpt.losses(logits, torch.tensor([[1, 1]])).tolist() == [[pytest.approx(log(2)), pytest.approx(log(4))]]


def test_dropout_acts_in_training_alone(build, ids):
    model, _ = build(FACTS, architecture="gpt", layers=1, width=12, heads=3, context=8, dropout=0.5)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
