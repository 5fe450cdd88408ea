"""Hooks of Hugging Face's models mean what they mean in ours, family by family, with transformers' own outputs as the judge."""

import pytest
import torch
import transformers as hf
from families import CONFIGS, CONTEXT, ENCODERS, PARALLEL, VOCABULARY, write

from pipeline.models.hooks import record, spliced
from pipeline.models.hub import Spec, fetch
from pipeline.study import hub_families

FACTS = {"form": "tokens", "vocabulary": VOCABULARY}
LAST_MAP = {"gpt": "mlp.c_proj", "gpt-neox": "mlp.dense_4h_to_h", "distilbert": "ffn.lin2"} | {
    name: "output.dense" for name in ENCODERS if name != "distilbert"
}
CASES = [(name, hook) for name in CONFIGS for hook in hub_families.HOOKS if not (name in PARALLEL and hook == "resid_mid")]
_made: dict = {}


def spec(folder, **settings) -> Spec:
    return Spec.model_validate({"architecture": "hub", "dataset": "d", "name": str(folder), "context": CONTEXT, **settings})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name)`: a fetched model of a family, and its parsed spec."""
    folder = tmp_path_factory.mktemp("families")

    def made(name: str):
        if name not in _made:
            parsed = spec(write(folder, name))
            _made[name] = fetch(parsed, FACTS)[0], parsed
        return _made[name]

    yield made
    _made.clear()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(1))


def seen_by(model, ids) -> tuple[dict, torch.Tensor]:
    """Every hook's value in the order of the forward, and the output."""
    found = {}
    with torch.no_grad():
        output = model(ids, lambda name, value: found.setdefault(name, value))
    return found, output


def callbacks(model) -> int:
    """Callbacks on all modules; transformers has some of its own."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_every_family_of_the_table_is_tried():
    assert {config().model_type for config in CONFIGS.values()} == set(hub_families.FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_hooks_are_those_the_study_knows_with_their_widths_in_order(made, ids, name):
    model, parsed = made(name)
    found, output = seen_by(model, ids)
    assert {hook: value.shape[-1] for hook, value in found.items()} == parsed.hooks()
    assert list(found) == list(parsed.hooks())
    assert ("blocks.0.resid_mid" in found) == (name not in PARALLEL)
    assert torch.equal(output, model(ids)), "a hooked forward is the plain one bit for bit"
    assert model.scored == (name not in ENCODERS)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_stream_is_transformers_hidden_states(made, ids, name):
    """The last hidden state that transformers gives is the stream after the final norm, where there is one."""
    model, _ = made(name)
    found, _ = seen_by(model, ids)
    blocks = 1 + max(int(hook.split(".")[1]) for hook in found)
    cache = {} if name in ENCODERS else {"use_cache": False}
    with torch.no_grad():
        states = model.network(input_ids=ids, output_hidden_states=True, **cache).hidden_states
    assert len(states) == blocks + 1
    for n in range(blocks):
        assert torch.equal(found[f"blocks.{n}.resid_pre"], states[n])
        if n + 1 < blocks or name in ENCODERS:
            assert torch.equal(found[f"blocks.{n}.resid_post"], states[n + 1])
    if name not in ENCODERS:
        norm = next(module for path, module in model.network.named_modules() if path.endswith(("final_layer_norm", "ln_f", "model.norm")))
        assert torch.equal(norm(found[f"blocks.{blocks - 1}.resid_post"]), states[-1])


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ENCODERS])
def test_the_stream_adds_up(made, ids, name):
    found, _ = seen_by(made(name)[0], ids)
    for hook, post in found.items():
        if hook.endswith("resid_post"):
            pre, attn, mid, mlp = (found.get(hook.replace("resid_post", one)) for one in ("resid_pre", "attn_out", "resid_mid", "mlp_out"))
            assert attn.any()
            assert mlp.any()
            if name in PARALLEL:
                assert torch.equal(post, (mlp + attn) + pre)
            else:
                assert torch.equal(mid, pre + attn)
                assert torch.equal(post, mid + mlp)


@pytest.mark.parametrize("name", ENCODERS)
def test_in_encoders_a_norm_follows_each_sum(made, ids, name):
    model, _ = made(name)
    found, _ = seen_by(model, ids)
    norms = ("sa_layer_norm", "output_layer_norm") if name == "distilbert" else ("attention.output.LayerNorm", "output.LayerNorm")
    for n, block in enumerate(model.network.get_submodule(hub_families.FAMILIES[name].blocks)):
        at = {hook: found[f"blocks.{n}.{hook}"] for hook in hub_families.HOOKS}
        assert torch.equal(at["resid_mid"], block.get_submodule(norms[0])(at["attn_out"] + at["resid_pre"]))
        assert torch.equal(at["resid_post"], block.get_submodule(norms[1])(at["mlp_out"] + at["resid_mid"]))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_hidden_layer_is_what_the_last_map_takes(made, ids, name):
    model, _ = made(name)
    found, _ = seen_by(model, ids)
    family = hub_families.FAMILIES[model.network.config.model_type]
    path = next((path for start, path in sorted(LAST_MAP.items(), reverse=True) if name.startswith(start)), "mlp.down_proj")
    for n, block in enumerate(model.network.get_submodule(family.blocks)):
        last = block.get_submodule(path)
        weight = last.weight if isinstance(last, hf.pytorch_utils.Conv1D) else last.weight.T
        out = found[f"blocks.{n}.mlp_hidden"] @ weight + (last.bias if last.bias is not None else 0)
        if name in ("gemma2", "gemma3", "olmo2", "olmo3"):
            out = block.post_feedforward_layernorm(out)
        torch.testing.assert_close(out, found[f"blocks.{n}.mlp_out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "hook"), CASES)
def test_what_is_spliced_in_flows_on(made, ids, name, hook):
    """The same value changes no bit; zero changes the output; the stream of other tokens gives those tokens' output."""
    model, _ = made(name)
    at = f"blocks.1.{hook}"
    with torch.no_grad():
        plain = model(ids)
        assert torch.equal(spliced(model, ids, at, lambda x: x.clone()), plain)
        assert not torch.equal(spliced(model, ids, at, torch.zeros_like), plain)
        if hook.startswith("resid"):
            other = torch.roll(ids, 1)
            value = record(model, other, [at])[at]
            assert torch.equal(spliced(model, ids, at, lambda _: value), model(other)), "the stream is all that flows on"
        assert torch.equal(model(ids), plain), "nothing stays behind"


@pytest.mark.parametrize(("name", "hook"), [case for case in CASES if case[1] in ("attn_out", "mlp_out") and case[0] not in ENCODERS])
def test_a_block_that_adds_nothing_leaves_the_stream_as_it_was(made, ids, name, hook):
    found = {}
    at = f"blocks.1.{hook}"

    def tap(where, value):
        return found.setdefault(where, torch.zeros_like(value) if where == at else value)

    with torch.no_grad():
        made(name)[0](ids, tap)
    pre, mid, post = (found.get(f"blocks.1.resid_{one}") for one in ("pre", "mid", "post"))
    if name in PARALLEL:
        assert torch.equal(post, pre + found["blocks.1.mlp_out" if hook == "attn_out" else "blocks.1.attn_out"])
    else:
        assert torch.equal(mid, pre) if hook == "attn_out" else torch.equal(post, mid)


@pytest.mark.parametrize("name", CONFIGS)
def test_recording_ends_with_the_last_hook_and_leaves_no_callback(made, ids, name):
    model, _ = made(name)
    before = callbacks(model)
    whole, _ = seen_by(model, ids)
    calls = []
    counting = model.network.get_submodule(hub_families.FAMILIES[model.network.config.model_type].blocks)[1].register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    wanted = ["blocks.0.mlp_hidden", "blocks.0.attn_out"]
    with torch.no_grad():
        found = record(model, ids, wanted)
    counting.remove()
    assert not calls, "the forward went on"
    assert all(torch.equal(found[hook], whole[hook]) for hook in wanted)
    assert callbacks(model) == before
    with pytest.raises(ZeroDivisionError):
        spliced(model, ids, "blocks.0.mlp_out", lambda x: x / (1 // 0))
    assert callbacks(model) == before


@pytest.mark.parametrize("name", ["llama", "olmo2", "bert", "distilbert"])
def test_what_was_recorded_is_not_changed_by_what_is_spliced_in(made, ids, name):
    """The stream between attention and MLP is written in place; what a tap saw of it stays."""
    model, _ = made(name)
    whole, _ = seen_by(model, ids)
    found = {}

    def tap(where, value):
        found[where] = value
        return torch.zeros_like(value) if where == "blocks.1.resid_mid" else value

    with torch.no_grad():
        model(ids, tap)
    assert torch.equal(found["blocks.1.resid_mid"], whole["blocks.1.resid_mid"])
    assert torch.equal(found["blocks.1.resid_pre"], whole["blocks.1.resid_pre"])


def test_gradients_flow_through_hooks(made, ids):
    """Of the sum of logits by a direction added to each hook, against a difference."""
    model, _ = made("gpt2")
    for hook in hub_families.HOOKS:
        at = f"blocks.1.{hook}"
        width = model(ids).new_zeros(made("gpt2")[1].hooks()[at])
        shift = width.clone().requires_grad_()
        spliced(model, ids, at, lambda x, by=shift: x + by).sum().backward()
        step = torch.zeros_like(width)
        step[0] = 1e-2
        with torch.no_grad():
            up, down = (spliced(model, ids, at, lambda x, by=by: x + by).sum() for by in (step, -step))
        assert shift.grad[0].item() == pytest.approx(((up - down) / 2e-2).item(), rel=0.02, abs=0.02)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hooks_of_half_precision_are_seen_in_float32(tmp_path, ids, dtype):
    for name in ("llama", "gpt2"):
        model, _ = fetch(spec(write(tmp_path, name), dtype=dtype), FACTS)
        found, output = seen_by(model, ids)
        assert output.dtype == getattr(torch, dtype)
        assert all(value.dtype == torch.float32 for value in found.values())
        assert torch.equal(output, model(ids))
        for hook in found:
            assert torch.equal(spliced(model, ids, hook, lambda x: x.clone()), output)
