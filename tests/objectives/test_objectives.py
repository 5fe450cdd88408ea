"""What holds for all objectives: their place in a model, layers, precision, special tokens, what they keep."""

import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.models import checkpoint
from pipeline.models.hooks import untouched
from pipeline.objectives.base import objectives
from pipeline.study.kinds import kinds
from pipeline.study.objective import names

SETTINGS = {"topk-mlp": {"ratio": 0.5}, "online-sae": {"lr": 0.01}}
ALL = [{"objective": kind, **SETTINGS.get(kind, {})} for kind in names()]
each = pytest.mark.parametrize("listed", ALL, ids=lambda listed: listed["objective"])


def test_the_kinds_there_are():
    assert names() == ["anti-polysemantic", "direct-sparsity", "l0-gates", "l1", "online-sae", "orthogonality", "topk-mlp"]
    assert list(kinds("objectives")) == names()


def test_all_stand_in_the_studys_order_and_the_shaping_ones_in_the_model(made):
    model, found = made(*reversed(ALL))
    assert [type(one).__module__.rsplit(".", 1)[1].replace("_", "-") for one in found] == [one["objective"] for one in reversed(ALL)]
    assert [one for one in found if one.shaping] == list(model.shaping)
    assert {type(one).__module__.rsplit(".", 1)[1] for one in model.shaping} == {"topk_mlp", "l0_gates", "direct_sparsity"}
    outside = [p for one in found if not one.shaping for p in one.parameters()]
    assert outside
    assert not {id(p) for p in outside} & {id(p) for p in model.parameters()}


@each
def test_it_acts_on_the_layers_named_and_no_others(made, seen, ids, listed):
    plain, _ = made(seed=3)
    model, (objective,) = made({**listed, "layers": [2]}, seed=3)
    assert all(hook.startswith("blocks.2.") for hook in objective.hooks)
    before, after = seen(plain.train(), ids).at, seen(model.train(), ids).at
    assert all(torch.equal(before[name], after[name]) for name in before if name < "blocks.2.mlp")
    assert [hook for hook in objective.hooks if objective.reads] == [hook for hook in after if hook in objective.hooks and objective.reads]


@each
def test_a_term_is_a_mean_over_its_layers(made, term_of, ids, listed):
    both = term_of(*_one(made, listed, [0, 2]), ids)
    if both is None:
        return
    alone = [term_of(*_one(made, listed, [n]), ids) for n in (0, 2)]
    if listed["objective"] in ("orthogonality", "anti-polysemantic", "l1"):  # the others draw weights for each layer
        torch.testing.assert_close(both, torch.stack(alone).mean())
    assert both.shape == ()


def _one(made, listed, layers):
    model, (objective,) = made({**listed, "layers": layers})
    return model.eval(), objective


@each
def test_initial_weights_are_those_of_the_seed_and_leave_the_generator_alone(made, listed):
    state = torch.get_rng_state()
    torch.manual_seed(1)
    _, (one,) = made(listed)
    torch.manual_seed(2)
    model, (two,) = made(listed)
    after = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    plain, _ = made()
    assert torch.equal(torch.get_rng_state(), after)  # both are seeded by `build`, and the objective drew nothing besides
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
    torch.set_rng_state(state)


@each
def test_a_model_is_the_same_after_saving_and_loading(made, seen, ids, listed, tmp_path):
    spec = {"architecture": "gpt", "layers": 2, "width": 12, "heads": 3, "context": 8, "objectives": [listed]}
    model, settings = checkpoint.build(spec, {"vocabulary": 11})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    with publishing(tmp_path / "m", "model", settings.settings(), {}) as draft:
        checkpoint.save(draft, model, settings.settings(), {"vocabulary": 11})
    loaded = checkpoint.load(Artifact.open(tmp_path / "m" / MANIFEST))
    assert torch.equal(loaded(ids), model.eval()(ids))
    plain, _ = checkpoint.build({**spec, "objectives": []}, {"vocabulary": 11})
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "shaping" not in name})
    assert torch.equal(loaded(ids), plain.eval()(ids)) != bool(model.shaping)
    if listed["objective"] == "topk-mlp":
        assert (seen(loaded, ids).at["blocks.1.mlp_hidden"] != 0).sum(-1).eq(24).all()


@each
def test_a_batch_of_special_tokens_alone_adds_nothing(made, seen, ids, listed):
    model, (objective,) = made(listed)
    found = seen(model, ids).at
    values = {hook: found[hook].flatten(0, 1)[:0] for hook in objective.hooks} if objective.reads else {}
    term = objective.term(values, ids.flatten()[:0])
    assert term is None or (term.isfinite() and (term == 0 or not objective.reads))
    objective.end_step()


@each
def test_terms_are_float32_at_least_also_inside_autocast(made, seen, ids, listed):
    model, (objective,) = made(listed)
    with torch.autocast("cpu", torch.bfloat16):
        found = seen(model, ids).at
        values = {hook: found[hook].flatten(0, 1) for hook in objective.hooks} if objective.reads else {}
        term = objective.term(values, ids.flatten())
    if term is None:
        return
    assert term.dtype == torch.float32
    exact = objective.term({hook: value.float() for hook, value in values.items()}, ids.flatten())
    assert torch.equal(term, exact)
    term.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@each
def test_a_model_in_float64_has_objectives_in_float64(made, listed, term_of, ids):
    model, _ = made(listed)
    model.double()
    settings = checkpoint.settings({"architecture": "gpt", "layers": 3, "width": 12, "heads": 3, "mlp_width": 20, "objectives": [listed]})
    (objective,) = objectives(settings, model)
    assert all(value.dtype == torch.float64 for value in objective.parameters())
    term = term_of(model, objective, ids)
    assert term is None or term.dtype == torch.float64


@each
def test_nothing_of_a_step_is_kept(made, seen, ids, listed):
    model, (objective,) = made(listed)

    def step():
        objective.begin_step(0.0)
        forward = seen(model, ids)
        values = {hook: forward.at[hook].flatten(0, 1) for hook in objective.hooks} if objective.reads else {}
        loss, term = forward.output.square().mean(), objective.term(values, ids.flatten())
        torch.autograd.grad(loss if term is None else loss + term, list(model.parameters()), allow_unused=True)
        objective.end_step()
        return [weakref.ref(value) for value in (*forward.at.values(), *values.values())]

    kept = step()
    gc.collect()
    assert [one() for one in kept if one() is not None] == []
    assert all(value.grad_fn is None for pair in getattr(objective, "seen", {}).values() for value in pair)


@each
def test_its_state_goes_through_a_file_and_back(made, term_of, ids, listed, tmp_path):
    model, (objective,) = made(listed)
    term_of(model, objective, ids)
    objective.end_step()
    save_file(objective.resume_state(), tmp_path / "state.safetensors")
    _, (other,) = made(listed)
    other.resume(load_file(tmp_path / "state.safetensors"))
    assert all(torch.equal(value, other.resume_state()[name]) for name, value in objective.resume_state().items())


def test_what_has_no_token_budget_takes_whatever_is_drawn(made):
    _, found = made(*ALL)
    budgets = {type(one).__module__.rsplit(".", 1)[1]: one.tokens for one in found}
    assert budgets["l1"] == 4096
    assert min(budgets["topk_mlp"], budgets["l0_gates"]) > 2**60


def test_several_shape_a_hook_in_the_studys_order(made, seen, ids):
    """Gates that close what Top-K kept, and not the other way round."""
    model, (top, gates) = made({"objective": "topk-mlp", "ratio": 0.5}, {"objective": "l0-gates"})
    with torch.no_grad():
        gates.log_alpha[0][:10] = -9.0
        gates.log_alpha[0][10:] = 9.0
    value = torch.cat([torch.full((1, 1, 10), 5.0), torch.full((1, 1, 10), 1.0)], -1)
    out = value
    for one in model.eval().shaping:
        out = one("blocks.0.mlp_hidden", out, untouched)
    assert (out == 0).all()
    assert list(model.shaping) == [top, gates]
