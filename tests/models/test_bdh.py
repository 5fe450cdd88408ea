"""BDH in inference: size, the published equations, hooks, long text, sessions, phases, export."""

from fractions import Fraction
from math import cos, pi, sin

import pytest
import torch
from bdh_reference import Reference
from pydantic import ValidationError
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models import bdh_parts, checkpoint
from pipeline.models.bdh import Model, export
from pipeline.models.bdh_tapped import TappedLevels
from pipeline.models.hooks import record, spliced
from pipeline.study.models.bdh import BDH

FACTS = {"vocabulary": 11}
SMALL = {"architecture": "bdh", "layers": 2, "width": 6, "heads": 3, "multiplier": 5, "context": 8, "dropout": 0.2}
HOOKS = [f"blocks.{n}.{hook}" for n in range(2) for hook in ("x_sparse", "y_kv", "xy_sparse", "resid_post")]


@pytest.fixture
def bdh(build):
    """A small model in float64."""
    return build(FACTS, **SMALL)[0].double().requires_grad_(False)


@pytest.fixture
def reference(bdh):
    model = Reference(2, 6, 0.2, 3, 5, 11).double()
    model.load_state_dict(bdh.state_dict())
    return model.requires_grad_(False)


def text(*shape):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(3))


def all_hooks(model, ids):
    """Every hook's value in the order of the forward, and the logits."""
    found = {}
    return found, model(ids, lambda name, value: found.setdefault(name, value))


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_published_size_and_names():
    spec = BDH(architecture="bdh", dataset="d")
    with torch.device("meta"):
        model = Model(spec, {"vocabulary": 256})
    assert sum(p.numel() for p in model.parameters()) == 25_296_896
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        "encoder": (4, 256, 8192), "encoder_v": (4, 256, 8192), "decoder": (32768, 256), "lm_head": (256, 256),
        "embed.weight": (256, 256), "attn.freqs": (1, 1, 1, 8192),
    }  # fmt: skip
    assert spec.hooks()["blocks.5.xy_sparse"] == spec.hooks()["blocks.0.x_sparse"] == 32768
    assert (spec.hooks()["blocks.5.y_kv"], spec.hooks()["blocks.5.resid_post"]) == (1024, 256)


def test_initial_weights_have_one_spread():
    model, _ = checkpoint.build({"architecture": "bdh", "width": 32, "multiplier": 64, "heads": 2}, {"vocabulary": 128})
    for parameter in model.parameters():
        assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(parameter.mean().item()) < 5 * 0.02 / parameter.numel() ** 0.5


@pytest.mark.parametrize("recurrent", [False, True], ids=["parallel", "recurrent"])
@pytest.mark.parametrize("length", [1, 7, 8, 19])
def test_it_is_the_published_equations(bdh, reference, recurrent, length):
    ids, wanted = text(2, length), {}
    found, logits = all_hooks(bdh, ids)
    close(logits[1], reference(ids[1], recurrent, wanted))
    assert list(found) == list(wanted) == HOOKS
    for hook, value in wanted.items():
        close(found[hook][1], value)


@pytest.mark.parametrize("length", [1, 8, 21])
@pytest.mark.parametrize("rows", [1, 16, 1024])
def test_a_forward_that_is_looked_into_changes_not_one_bit(bdh, monkeypatch, rows, length):
    monkeypatch.setattr(bdh_parts, "ROWS", rows)
    monkeypatch.setattr(bdh_parts, "BLOCK", 3)
    for model in (bdh, bdh.float()):
        ids = text(5, length)
        found, logits = all_hooks(model, ids)
        assert torch.equal(model(ids), logits)
        for hook in HOOKS:
            assert torch.equal(record(model, ids, [hook])[hook], found[hook])
            assert torch.equal(spliced(model, ids, hook, lambda value: value.clone()), logits)


def test_hooks_are_those_the_study_knows_with_their_widths(build):
    model, spec = build(FACTS, **SMALL)
    found, _ = all_hooks(model, text(2, 5))
    assert {name: value.shape[-1] for name, value in found.items()} == spec.hooks()
    assert all(spec.meaning(hook) for hook in spec.hooks())


def test_neurons_are_never_negative_and_silent_at_the_first_position(bdh):
    found, _ = all_hooks(bdh, text(3, 8))
    for n in range(2):
        x, xy = found[f"blocks.{n}.x_sparse"], found[f"blocks.{n}.xy_sparse"]
        assert (x >= 0).all() and (xy >= 0).all() and (x[:, 0] > 0).any()
        assert not xy[:, 0].any() and xy[:, 1:].any()
        assert not found[f"blocks.{n}.y_kv"][:, 0].any()


def test_no_token_sees_a_later_one_and_each_sees_the_earlier_ones(bdh):
    ids = text(1, 19)
    before = bdh(ids)[0]
    for changed in range(19):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 11
        same = (bdh(other)[0] == before).all(1)
        assert same[:changed].all() and not same[changed:].any()


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("length", [8, 19])
def test_one_hook_is_recorded_bit_for_bit_as_all_are_seen_and_no_wide_one_is_made_for_it(build, monkeypatch, hook, length):
    model = build(FACTS, **SMALL)[0].eval().requires_grad_(False)
    ids = text(5, length)
    seen, _ = all_hooks(model, ids)
    made = []
    monkeypatch.setattr(TappedLevels, "forward", lambda self, x, n, old=TappedLevels.forward: made.append(n) or old(self, x, n))
    assert torch.equal(record(model, ids, [hook])[hook], seen[hook])
    assert made == ([] if hook.endswith("resid_post") else [int(hook[7])])


@pytest.mark.parametrize("length", [8, 19])
@pytest.mark.parametrize("hook", ["x_sparse", "y_kv", "xy_sparse", "resid_post"])
def test_what_is_spliced_in_flows_on(bdh, reference, hook, length):
    """The last level goes on from another text's value by its equations, and from its own values otherwise."""
    ids = text(2, length)
    own, before = all_hooks(bdh, ids)
    wanted = all_hooks(bdh, (ids + 3) % 11)[0][f"blocks.1.{hook}"]
    found = spliced(bdh, ids, f"blocks.1.{hook}", lambda value: wanted)
    for row in range(2):
        stream, value = own["blocks.0.resid_post"][row], {hook: wanted[row]}
        x_sparse = heads(value.get("x_sparse", own["blocks.1.x_sparse"][row]), 3)
        y_kv = F.layer_norm(reference.attention(x_sparse, stream), (6,))
        y_kv = heads(value["y_kv"], 3) if "y_kv" in value else y_kv
        xy_sparse = value.get("xy_sparse", (x_sparse * F.relu(y_kv @ reference.encoder_v)).transpose(0, 1).flatten(1))
        resid_post = F.layer_norm(stream + F.layer_norm(xy_sparse @ reference.decoder, (6,)), (6,))
        close(found[row], value.get("resid_post", resid_post) @ reference.lm_head)
        assert not torch.allclose(found[row], before[row])


def heads(value, count):
    """A hook's value (T, heads W) as (heads, T, W)."""
    return value.unflatten(1, (count, -1)).transpose(0, 1)


def test_without_neurons_nothing_is_read_and_nothing_breaks(bdh):
    found = {}
    logits = bdh(text(1, 8), lambda name, value: found.setdefault(name, value * 0 if name == "blocks.0.x_sparse" else value))
    assert not found["blocks.0.y_kv"].any() and not found["blocks.0.xy_sparse"].any()
    assert logits.isfinite().all()


def test_long_text_is_the_same_in_chunks_and_at_once(build):
    ids = text(2, 37)
    chunked = build(FACTS, **SMALL)[0].double()(ids)
    close(chunked, build(FACTS, **{**SMALL, "context": 64})[0].double()(ids))


class Sizes(TorchDispatchMode):
    """The shapes of all results while it is entered."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.found.append((str(func), tuple(result.shape) if isinstance(result, torch.Tensor) else None))
        return result


def test_a_session_gives_what_a_whole_forward_gives(bdh):
    ids, feed, end = text(30), bdh.session(), 0
    whole = bdh(ids[None])[0]
    for length in (3, 8, 1, 1, 13, 1, 3):
        end += length
        close(feed(ids[end - length : end]), whole[end - 1])
    assert end == len(ids)


def test_a_token_of_a_session_costs_the_same_however_long_the_text_is(bdh):
    feed, costs = bdh.session(), []
    for token in text(40):
        with Sizes() as sizes:
            feed(token[None])
        costs.append(sizes.found)
    assert costs[2] == costs[20] == costs[39]
    assert max(max(shape, default=0) for _, shape in costs[39] if shape) < 40


def test_a_session_sees_what_training_has_made_part_of_the_model(bdh):
    class Halved(torch.nn.Module):
        def forward(self, name, value, *_):
            return value / 2 if name == "blocks.0.xy_sparse" else value

    before = bdh(text(1, 12))
    bdh.shaping.append(Halved())
    feed, ids = bdh.session(), text(1, 12)
    feed(ids[0, :5])
    found = feed(ids[0, 5:])
    close(found, bdh(ids)[0, -1])
    assert not torch.allclose(found, before[0, -1])


def test_memory_does_not_grow_with_the_square_of_the_length(build):
    """Nothing as large as half the scores of all pairs is made, whether hooks are looked at or not."""
    model, _ = build({"vocabulary": 11}, **{**SMALL, "layers": 1, "multiplier": 2})
    for tap in ((), (lambda name, value: value,)):
        with torch.no_grad(), Sizes() as sizes:
            model(text(1, 400), *tap)
        assert max(torch.Size(shape).numel() for _, shape in sizes.found if shape) < 400 * 400 / 2


@pytest.mark.parametrize("start", [0, 5, 10**6, 10**9 + 7])
def test_phases_are_exact_at_any_position(start):
    turns = bdh_parts.frequencies(64)
    found = bdh_parts.Rotation(turns, 4, torch.float32).at(start, 4)
    assert found.dtype == torch.complex64
    for row in range(4):
        for pair in range(32):
            angle = 2 * pi * float(Fraction(turns[2 * pair].item()) * (start + row) % 1)
            assert found[row, pair].item() == pytest.approx(complex(cos(angle), sin(angle)), abs=1e-6)


def test_frequencies_are_the_published_ones():
    found = bdh_parts.frequencies(8)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([1 / (2 * pi * 2 ** (4 * (i // 2))) for i in range(8)], rel=1e-7)


def test_the_export_loads_into_the_published_model(build, tmp_path):
    model, spec = build(FACTS, **SMALL)
    export(model, spec, tmp_path / "one.pt")
    export(model, spec, tmp_path / "another.pt")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()
    found = torch.load(tmp_path / "one.pt", weights_only=True)
    reference = Reference(**found["config"])
    reference.load_state_dict(found["model"])
    ids = text(8)
    with torch.no_grad():
        close(reference.double()(ids), model.double()(ids[None])[0])


def test_a_model_with_more_to_it_than_the_published_one_is_not_exported(build, tmp_path):
    model, spec = build(FACTS, **SMALL)
    model.shaping.append(torch.nn.Identity())
    with pytest.raises(ValueError, match="no place"):
        export(model, spec, tmp_path / "one.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["/tmp/x.pt", "../x.pt", "x.bin", "a//x.pt", "./x.pt", ".pt", "a\\x.pt"])
def test_an_export_stays_in_the_models_folder(name):
    with pytest.raises(ValueError, match="export"):
        BDH(architecture="bdh", dataset="d", export=name)
    assert BDH(architecture="bdh", dataset="d", export="export/bdh_checkpoint.pt").export


def test_heads_share_the_neurons_in_pairs():
    assert BDH(architecture="bdh", dataset="d", width=6, heads=3, multiplier=1).neurons == 2
    for settings in ({"width": 6, "heads": 2, "multiplier": 1}, {"width": 4, "heads": 3, "multiplier": 5}):
        with pytest.raises(ValueError, match="heads"):
            BDH(architecture="bdh", dataset="d", **settings)


def test_compile_is_refused_since_it_would_change_nothing():
    with pytest.raises(ValidationError, match="compile changes nothing here"):
        BDH.model_validate({"architecture": "bdh", "dataset": "given", "training": {"compile": True}})
