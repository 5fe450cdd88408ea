"""Direct sparsity: it begins as the identity, its codes flow on, and their L1 is the term."""

import pytest
import torch

from pipeline.models import checkpoint
from pipeline.models.hooks import record, untouched
from pipeline.study.objectives.direct_sparsity import DirectSparsity

HOOK = "blocks.0.mlp_out"


@pytest.fixture
def objective(one):
    return one("direct-sparsity", layers=[0])


@pytest.mark.parametrize("latents", [None, 24, 26, 90])
def test_it_begins_as_the_identity_with_half_of_the_codes_active(one, latents):
    objective = one("direct-sparsity", layers=[0], latents=latents)
    codes = objective.of(HOOK)
    assert codes.W_enc.shape == (latents or 48, 12)
    assert torch.equal(codes.W_enc, codes.W_dec.T)
    value, found = torch.randn(2, 3, 12), {}
    out = objective(HOOK, value, lambda name, codes: found.setdefault(name, codes))
    torch.testing.assert_close(out, value)
    assert (found[f"{HOOK}.codes"] > 0).sum(-1).eq((latents or 48) // 2).all()


def test_what_cannot_begin_so_is_a_problem():
    for latents in (12, 22, 25):
        (problem,) = DirectSparsity.model_validate({"objective": "direct-sparsity", "latents": latents}).problems(1, 12)
        assert problem.startswith(f"latents: {latents} is no even number of at least 24")


def test_the_projection_by_hand(objective):
    codes = objective.of(HOOK)
    with torch.no_grad():
        for parameter in codes.parameters():
            parameter.normal_()
    x = torch.randn(12)
    expected = codes.b_dec + sum(codes.W_dec[:, m] * max(0.0, (codes.W_enc[m] @ x + codes.b_enc[m]).item()) for m in range(48))
    torch.testing.assert_close(objective(HOOK, x[None, None], untouched)[0, 0], expected)
    assert objective("blocks.1.mlp_out", x, untouched) is x


def test_the_term_is_the_mean_code_times_the_norm_of_its_column(objective):
    with torch.no_grad():
        objective.of(HOOK).W_dec[:] = 0
        objective.of(HOOK).W_dec[:2, 0] = torch.tensor([3.0, 4.0])
        objective.of(HOOK).W_dec[5, 1] = -2.0
    codes = torch.zeros(2, 48)
    codes[0, 0], codes[1, 1], codes[1, 7] = 1.0, 10.0, 100.0
    assert objective.hooks == [f"{HOOK}.codes"]
    assert objective.term({f"{HOOK}.codes": codes}, torch.tensor([1, 2])).item() == pytest.approx((5 + 20) / (2 * 48))


def test_making_codes_small_and_their_columns_large_changes_neither_output_nor_term(made, term_of, seen, ids):
    model, (objective,) = made({"objective": "direct-sparsity"})
    before, logits = term_of(model, objective, ids), seen(model, ids).output
    with torch.no_grad():
        for codes in objective.codes:
            codes.W_enc *= 0.01
            codes.W_dec *= 100
    torch.testing.assert_close(term_of(model, objective, ids), before)
    torch.testing.assert_close(seen(model, ids).output, logits)


def test_the_model_is_the_same_at_first_and_its_codes_are_seen_and_changed_by_a_tap(made, seen, ids):
    plain, _ = made()
    model, _ = made({"objective": "direct-sparsity", "layers": [1]})
    torch.testing.assert_close(seen(model, ids).output, seen(plain, ids).output)
    codes = record(model, ids, ["blocks.1.mlp_out.codes"])["blocks.1.mlp_out.codes"]
    assert codes.shape == (4, 8, 48)
    off = model(ids, lambda name, value: 0 * value if name.endswith(".codes") else value)
    without = plain(ids, lambda name, value: 0 * value if name == "blocks.1.mlp_out" else value)
    torch.testing.assert_close(off, without)


def test_a_special_token_enters_no_statistic(made, seen, ids):
    """The term takes the rows it is given, whatever the codes of the others are."""
    model, (objective,) = made({"objective": "direct-sparsity", "layers": [0]})
    rows = torch.arange(8)
    flat = seen(model, ids).at[objective.hooks[0]].flatten(0, 1)
    other = torch.cat([flat[:8], 1e6 + flat[8:]])
    terms = [objective.term({objective.hooks[0]: values[rows]}, ids.flatten()[rows]) for values in (flat, other)]
    assert torch.equal(*terms)


def test_gradients_agree_with_differences(objective, random):
    objective = objective.double()
    with torch.no_grad():
        objective.of(HOOK).b_enc.normal_(generator=torch.Generator().manual_seed(1))
    x, ids = random(4, 12)
    codes = objective.of(HOOK)

    def both(x, W_enc, W_dec):
        found = {}
        given = {"codes.0.W_enc": W_enc, "codes.0.W_dec": W_dec}
        out = torch.func.functional_call(objective, given, (HOOK, x[None], lambda name, value: found.setdefault(name, value)))
        return out, (found[f"{HOOK}.codes"][0] @ W_dec.norm(dim=0)).mean() / 48

    weights = [w.detach().clone().requires_grad_() for w in (codes.W_enc, codes.W_dec)]
    assert torch.autograd.gradcheck(both, (x.requires_grad_(), *weights))
    found = {}
    objective(HOOK, x[None], lambda name, value: found.setdefault(name, value))
    term = objective.term({f"{HOOK}.codes": found[f"{HOOK}.codes"][0]}, ids)
    torch.testing.assert_close(term, both(x, *weights)[1])
    ours = torch.autograd.grad(term, [codes.W_enc, codes.W_dec])
    torch.testing.assert_close(ours, torch.autograd.grad(both(x, *weights)[1], weights))


def test_descent_on_the_term_silences_codes(made, term_of, seen, ids):
    model, (objective,) = made({"objective": "direct-sparsity", "layers": [0]})
    before = (seen(model, ids).at[objective.hooks[0]] > 0).double().mean()
    optimizer = torch.optim.Adam(model.shaping.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        term_of(model, objective, ids).backward()
        optimizer.step()
    assert (seen(model, ids).at[objective.hooks[0]] > 0).double().mean() < 0.5 * before


def test_its_weights_are_the_models(made):
    model, _ = made({"objective": "direct-sparsity", "layers": [0]})
    plain, _ = made()
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 2 * 12 * 48 + 48 + 12
    again, _ = checkpoint.build(
        {"architecture": "gpt", "layers": 1, "width": 8, "heads": 2, "objectives": [{"objective": "direct-sparsity"}]}, {"vocabulary": 5}
    )
    assert again.state_dict()["shaping.0.codes.0.W_enc"].shape == (32, 8)
