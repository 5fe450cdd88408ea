"""Online SAE: its loss by hand, how it learns, and what of it reaches the model."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

HOOK = "blocks.0.mlp_out"


@pytest.fixture
def sae(one):
    """An objective on one hook in float64, none of whose numbers is trivial: `sae(every=2)`."""

    def sae(**settings):
        objective = one("online-sae", layers=[0], **settings).double()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for bias in (objective.saes[0].b_enc, objective.saes[0].b_dec):
                bias.copy_(0.1 * torch.randn(bias.shape, generator=generator))
        return objective

    return sae


@pytest.fixture
def x(random):
    return random(30, 12)[0] + 0.5


IDS = torch.zeros(30, dtype=torch.int64)


def by_hand(x: np.ndarray, weights: dict, sparsity: float) -> tuple[float, float, float]:
    """Loss, FVE and L0 over tokens, from the definition: everything in loops over tokens."""
    centred = x - x.mean(0)
    scaled = centred / np.sqrt(np.mean([row @ row for row in centred]))
    errors, sums, active = [], [], []
    for row in scaled:
        f = np.maximum(weights["W_enc"] @ (row - weights["b_dec"]) + weights["b_enc"], 0)
        errors.append(((row - f @ weights["W_dec"] - weights["b_dec"]) ** 2).sum())
        sums.append(f.sum())
        active.append((f > 0).sum())
    return np.mean(errors) + sparsity * np.mean(sums), 1 - np.mean(errors), np.mean(active)


def weights(objective) -> dict:
    return {name: value.detach().clone() for name, value in objective.saes[0].named_parameters()}


def step(objective, x, share: float = 0.0):
    """One step in which the model's backward gives no more than the term's own gradient."""
    objective.begin_step(share)
    term = objective.term({HOOK: x}, IDS)
    if term.requires_grad:
        (objective.weight * term).backward()
    objective.end_step()
    return term.item()


def test_loss_fve_and_l0_by_hand(sae, x):
    objective = sae(sparsity=0.3)
    loss, fve, l0 = by_hand(x.numpy(), {name: value.numpy() for name, value in weights(objective).items()}, 0.3)
    assert objective.term({HOOK: x}, IDS).item() == pytest.approx(loss, rel=1e-12)
    assert objective.tracked() == {"fve": pytest.approx(fve, rel=1e-12), "l0": pytest.approx(l0)}


def test_the_gradient_for_the_model_agrees_with_differences(sae, x):
    objective = sae()
    assert torch.autograd.gradcheck(lambda x: objective.term({HOOK: x}, IDS), x[:7].requires_grad_())


def test_the_sizes_and_the_hook(one):
    for hook, width in (("mlp_out", 12), ("mlp_hidden", 20), ("resid_post", 12)):
        objective = one("online-sae", hook=hook)
        assert objective.hooks == [f"blocks.{n}.{hook}" for n in range(3)]
        assert [tuple(one.W_enc.shape) for one in objective.saes] == [(4 * width, width)] * 3
    assert one("online-sae", latents=7).saes[2].W_dec.shape == (7, 12)
    first, second = (one("online-sae").saes[n].W_dec for n in (0, 1))
    assert not torch.equal(first, second)


def test_neither_scale_nor_shift_of_the_activations_counts(sae, x):
    objective = sae()
    expected = pytest.approx(objective.term({HOOK: x}, IDS).item(), rel=1e-9)
    assert objective.term({HOOK: 1e-4 * x}, IDS).item() == expected
    assert objective.term({HOOK: 30 * x - torch.arange(12)}, IDS).item() == expected


def test_the_weight_scales_what_reaches_the_model_and_not_how_the_sae_learns(sae, x):
    found = {}
    for weight in (0.0, 0.5, 2.0):
        objective = sae(weight=weight)
        given = x.clone().requires_grad_()
        step(objective, given)
        found[weight] = given.grad, weights(objective)
    (none, learned), (half, also), (double, too) = found.values()
    assert (none == 0).all() and (half != 0).any()
    torch.testing.assert_close(4 * half, double)
    for name in learned:
        assert torch.equal(learned[name], also[name]) and torch.equal(learned[name], too[name])


def test_it_only_watches_where_the_study_says_so(sae, x):
    watching, reaching = sae(reaches_model=False), sae()
    given = x.clone().requires_grad_()
    assert not watching.term({HOOK: given}, IDS).requires_grad
    watching = sae(reaches_model=False)
    assert step(watching, given) == step(reaching, x)
    assert given.grad is None
    assert all(torch.equal(a, b) for a, b in zip(weights(watching).values(), weights(reaching).values(), strict=True))


def test_a_step_is_adams_on_its_own_loss_with_the_decoder_at_norm_one(sae, x):
    objective = sae(lr=0.01, sparsity=0.2)
    copies = {name: value.requires_grad_() for name, value in weights(objective).items()}
    adam = torch.optim.Adam(copies.values(), lr=0.01)
    for _ in range(3):
        centred = x - x.mean(0)
        scaled = centred / centred.square().sum(1).mean().sqrt()
        f = ((scaled - copies["b_dec"]) @ copies["W_enc"].T + copies["b_enc"]).relu()
        error = (scaled - f @ copies["W_dec"] - copies["b_dec"]).square().sum(1).mean()
        adam.zero_grad()
        (error + 0.2 * f.sum(1).mean()).backward()
        with torch.no_grad():
            rows = copies["W_dec"]
            rows.grad -= torch.einsum("md,md->m", rows.grad, rows)[:, None] * rows
            adam.step()
            rows.copy_(F.normalize(rows))
        step(objective, x.clone().requires_grad_())
        for name, value in weights(objective).items():
            torch.testing.assert_close(value, copies[name].detach())
    torch.testing.assert_close(objective.saes[0].W_dec.norm(dim=1), torch.ones(48).double())


def test_it_learns_in_every_so_many_steps(sae, x):
    objective, moved = sae(every=3), []
    for _ in range(7):
        before = weights(objective)["W_enc"]
        step(objective, x.clone().requires_grad_())
        moved.append(not torch.equal(before, weights(objective)["W_enc"]))
    assert moved == [True, False, False, True, False, False, True]
    assert all(p.grad is None for p in objective.parameters())


def test_parts_of_a_batch_add_up(sae, x):
    whole, parts = sae(), sae()
    for objective, some in ((whole, [x, x]), (parts, [x, x.flip(0)])):  # the same tokens in another order
        for one in some:
            objective.term({HOOK: one}, IDS)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    once = sae()
    once.term({HOOK: x}, IDS)
    torch.testing.assert_close(2 * once.saes[0].W_enc.grad, whole.saes[0].W_enc.grad)


def test_measuring_teaches_it_nothing(sae, x):
    objective = sae()
    with torch.no_grad():
        assert objective.term({HOOK: x}, IDS).isfinite()
    assert all(p.grad is None for p in objective.parameters())


def test_a_run_goes_on_as_if_never_interrupted(sae, random):
    batches = [random(30, 12, seed=n)[0] for n in range(7)]
    straight, first, second = sae(every=2), sae(every=2), sae(every=2)
    for x in batches:
        step(straight, x)
    for x in batches[:3]:
        step(first, x)
    stored = {name: value.clone() for name, value in first.resume_state().items()}
    assert {value.dtype for name, value in stored.items() if "saes" in name} == {torch.float64}
    second.resume(stored)
    for x in batches[3:]:
        step(second, x)
    assert second.steps == 7
    for name, value in straight.resume_state().items():
        assert torch.equal(value, second.resume_state()[name]), name


def test_a_run_that_has_not_begun_can_be_resumed_as_well(sae):
    objective = sae()
    objective.resume(sae().resume_state())
    assert objective.steps == 0


def test_it_learns_to_reconstruct(one):
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(8, 12, generator=generator))
    objective = one("online-sae", layers=[0], lr=0.01, sparsity=0.02)
    found = []
    for _ in range(300):
        sources = torch.rand(256, 8, generator=generator) * (torch.rand(256, 8, generator=generator) < 0.2)
        objective.term({HOOK: sources @ directions}, torch.zeros(256, dtype=torch.int64))
        objective.end_step()
        found.append(objective.tracked())
    assert found[-1]["fve"] > 0.9 > found[0]["fve"]
    assert found[-1]["l0"] < 0.6 * found[0]["l0"]


def test_activations_that_do_not_vary_give_numbers(sae):
    objective = sae()
    x = torch.ones(30, 12, dtype=torch.float64, requires_grad=True)
    term = objective.term({HOOK: x}, IDS)
    term.backward()
    assert term.isfinite() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in objective.parameters())
