"""Recording and replacing: what is seen is what flows, and nothing stays behind."""

import pytest
import torch

from pipeline.artifacts.errors import UserError
from pipeline.models.hooks import record, spliced
from pipeline.study.kinds import kinds

HOOKS = [f"blocks.{n}.{hook}" for n in range(3) for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "resid_post")]


def full(model, ids) -> dict[str, torch.Tensor]:
    """Every hook of a whole forward."""
    found = {}
    model(ids, lambda name, value: found.setdefault(name, value))
    return found


@pytest.mark.parametrize("hooks", [[hook] for hook in HOOKS] + [HOOKS, ["blocks.2.resid_pre", "blocks.0.mlp_hidden"]], ids=str)
def test_what_is_recorded_is_what_a_whole_forward_has(gpt, ids, hooks):
    whole = full(gpt, ids)
    found = record(gpt, ids, hooks)
    assert set(found) == set(hooks)
    for hook in hooks:
        assert torch.equal(found[hook], whole[hook])


def test_nothing_after_the_last_hook_is_computed(gpt, ids, monkeypatch):
    def fail(*_):
        raise AssertionError("the forward went on")

    monkeypatch.setattr(gpt.blocks[1], "attention", fail)
    assert set(record(gpt, ids, ["blocks.1.resid_pre", "blocks.0.attn_out"])) == {"blocks.1.resid_pre", "blocks.0.attn_out"}
    with pytest.raises(AssertionError, match="went on"):
        record(gpt, ids, ["blocks.1.attn_out"])


def test_a_hook_that_is_not_there_is_named(gpt, ids):
    with pytest.raises(UserError, match=r"blocks\.3\.resid_pre"):
        record(gpt, ids, ["blocks.0.resid_pre", "blocks.3.resid_pre"])


@pytest.mark.parametrize("hook", HOOKS)
def test_splicing_in_the_same_value_changes_not_one_bit(gpt, ids, hook):
    assert torch.equal(spliced(gpt, ids, hook, lambda x: x.clone()), gpt(ids))


@pytest.mark.parametrize("hook", HOOKS)
def test_what_is_spliced_in_flows_on(gpt, ids, hook):
    """The same as adding to the hook what makes it the value of other tokens."""
    other = (ids + 3) % 11
    wanted = full(gpt, other)[hook]
    output = spliced(gpt, ids, hook, lambda x: wanted)
    assert not torch.equal(output, gpt(ids))
    if hook == "blocks.2.resid_post" or hook.endswith(("resid_pre", "resid_mid", "resid_post")):
        assert torch.equal(output, gpt(other)), "the residual stream is all that flows on"


def test_splicing_zero_into_a_blocks_output_leaves_the_stream_as_it_was(gpt, ids):
    seen = {}

    def tap(name, value):
        value = torch.zeros_like(value) if name == "blocks.1.mlp_out" else value
        return seen.setdefault(name, value)

    gpt(ids, tap)
    assert torch.equal(seen["blocks.1.resid_post"], seen["blocks.1.resid_mid"])


def test_an_error_inside_leaves_the_model_as_it_was(gpt, ids):
    before = gpt(ids)
    with pytest.raises(ZeroDivisionError):
        spliced(gpt, ids, "blocks.0.resid_mid", lambda x: x / (1 // 0))
    record(gpt, ids, ["blocks.0.resid_pre"])
    assert torch.equal(gpt(ids), before)


SMALL = {
    "bdh": ({"vocabulary": 11}, {"layers": 2, "width": 6, "heads": 3, "multiplier": 5, "context": 8}),
    "gpt": ({"vocabulary": 11}, {"layers": 2, "width": 12, "heads": 3, "context": 8}),
    "mlp": ({"width": 6}, {"hidden": [8, 16, 8], "batch_norm": [1, 2]}),
    "nanochat": ({"vocabulary": 11}, {"layers": 2, "width": 24, "heads": 6, "kv_heads": 2, "context": 8}),
}


def test_every_architecture_that_is_built_here_is_tried():
    """Those of the Hugging Face hub have tests of their own, test_hub_hooks.py."""
    assert SMALL.keys() == kinds("models").keys() - {"hub"}


@pytest.mark.parametrize("architecture", SMALL)
def test_a_forward_that_stops_after_the_last_hook_gives_the_bits_of_a_whole_one(build, ids, architecture):
    facts, shape = SMALL[architecture]
    model, spec = build(facts, architecture=architecture, **shape)
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) if architecture == "mlp" else ids
    with torch.no_grad():
        whole = full(model, inputs)
        for wanted in [[hook] for hook in spec.hooks()] + [list(spec.hooks()), list(spec.hooks())[::-2]]:
            found = record(model, inputs, wanted)
            assert set(found) == set(wanted)
            assert all(torch.equal(found[hook], whole[hook]) for hook in wanted)
