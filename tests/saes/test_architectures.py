"""What holds for every architecture: its loss and gradients are its paper's, whichever way few latents are multiplied, for SAEs and for
transcoders, alone and in processes that share a batch."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from pipeline.saes.base import Step
from tests.saes.formulas import ALL, BATCHTOPK, GATED, JUMPRELU, MATRYOSHKA, RELU, SHARES, TARGET, TOPK, VARIANCE, loss, names

MORE = [
    {**RELU, "subtract_b_dec": False},
    {**RELU, "penalty": "plain", "error": "element"},
    {**RELU, "penalty": "plain", "error": "variance"},
    {**RELU, "penalty": "decoder-norm", "error": "element", "subtract_b_dec": False},
    {**TOPK, "signed": True},
    {**GATED, "subtract_b_dec": False},
    {**JUMPRELU, "subtract_b_dec": False},
    *({**spec, "out": 4} for spec in ALL),
    *({**spec, "out": 4, "skip": True} for spec in ALL),
]
STRAIGHT_THROUGH = "threshold"


def target(spec: dict, x: torch.Tensor) -> torch.Tensor:
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(5), dtype=x.dtype) if "out" in spec else x


@pytest.mark.parametrize("spec", ALL, ids=names(ALL))
def test_the_shares_are_what_they_are_meant_to_be(build, x, spec):
    """Many active, few enough for the sparse products, none: for those architectures whose number of latents the bias decides."""
    found = [loss(build(bias=bias, **spec, latents=latents)[0], x, x)[1] for latents, bias in SHARES]
    active = [(f != 0).float().mean().item() for f in found]
    assert active[0] > 0.09
    assert 0 < active[1] < 0.05
    assert active[2] == 0


@pytest.mark.parametrize(("latents", "bias"), SHARES, ids=["many", "few", "none"])
@pytest.mark.parametrize("spec", [*ALL, *MORE], ids=names([*ALL, *MORE]))
def test_loss_and_gradients_are_those_of_the_dense_formula(build, x, spec, bias, latents):
    sae, _ = build(bias=bias, **spec, latents=latents)
    sae, x = sae.double(), x.double()
    y = target(spec, x)
    found = sae.losses(x, y, Step(VARIANCE))
    found.total.backward()
    gradients = {name: parameter.grad for name, parameter in sae.named_parameters() if name != STRAIGHT_THROUGH}
    sae.zero_grad()
    expected, f = loss(sae, x, y)
    expected.backward()
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.equal(found.fired_M, (f != 0).sum(0))
    whole = f @ sae.W_dec + sae.b_dec + (0 if sae.W_skip is None else x @ sae.W_skip.T)
    assert found.squared_error.item() == pytest.approx((whole - y).square().sum().item(), rel=1e-9)
    for name, gradient in gradients.items():
        wanted = sae.get_parameter(name).grad
        torch.testing.assert_close(torch.zeros_like(wanted) if gradient is None else gradient, wanted, rtol=1e-8, atol=1e-10, msg=name)


class Processes:
    """Two of them, as threads: each gives its value and gets both."""

    def __init__(self) -> None:
        self.barrier, self.slots = Barrier(2, timeout=300), [None, None]

    def told(self, rank: int, **more) -> Step:
        def both(value):
            self.slots[rank] = value
            self.barrier.wait()
            found = list(self.slots)
            self.barrier.wait()
            return found

        return Step(VARIANCE, summed=lambda value: sum(both(value)), gathered=lambda value: torch.cat(both(value)), **more)


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "dead"])
@pytest.mark.parametrize(("latents", "bias"), SHARES[:2], ids=["many", "few"])
@pytest.mark.parametrize("spec", ALL, ids=names(ALL))
def test_processes_that_share_a_batch_have_its_gradients(build, x, spec, bias, latents, dead):
    """The mean over equal shares is the gradient of the whole; what is learned without one ends alike everywhere."""
    one, _ = build(bias=bias, **spec, latents=latents)
    one, x = one.double(), torch.cat([x, x[:1] * 0.7]).double()
    x[:5] *= 2  # the two shares have different numbers of active latents
    more = {"dead_M": torch.arange(latents) % 3 == 0} if dead else {}
    two, share = [copy.deepcopy(one), copy.deepcopy(one)], Processes()
    one.losses(x, x, Step(VARIANCE, **more)).total.backward()

    def run(rank: int) -> None:
        two[rank].losses(x[5 * rank :][:5], x[5 * rank :][:5], share.told(rank, **more)).total.backward()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, range(2)))
    for name, parameter in one.named_parameters():
        mean = (two[0].get_parameter(name).grad + two[1].get_parameter(name).grad) / 2
        torch.testing.assert_close(mean, parameter.grad, rtol=1e-8, atol=1e-10, msg=name)
    for name, buffer in one.named_buffers():
        assert torch.allclose(two[0].get_buffer(name), buffer, rtol=1e-12)
        assert torch.equal(two[0].get_buffer(name), two[1].get_buffer(name))


@pytest.mark.parametrize("spec", ALL, ids=names(ALL))
def test_measuring_changes_nothing(build, x, spec):
    sae, _ = build(**spec)
    before = {name: value.clone() for name, value in [*sae.named_parameters(), *sae.named_buffers()]}
    sae.eval()
    sae.losses(x, x, Step(VARIANCE))
    for name, value in [*sae.named_parameters(), *sae.named_buffers()]:
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("spec", [RELU, JUMPRELU, TARGET, GATED], ids=names([RELU, JUMPRELU, TARGET, GATED]))
def test_the_penalty_warms_up(build, x, spec):
    """At a share of 0 the loss is what is left without it; in between it is linear."""
    sae, _ = build(**spec)
    none, half, whole = (sae.eval().losses(x, x, Step(VARIANCE, sparsity=share)) for share in (0.0, 0.5, 1.0))
    assert none.total.item() == pytest.approx(sum(value.item() for name, value in none.parts.items() if "error" in name), rel=1e-5)
    assert whole.total.item() != pytest.approx(none.total.item(), rel=1e-3)
    assert half.total.item() == pytest.approx((none.total.item() + whole.total.item()) / 2, rel=1e-5)


@pytest.mark.parametrize("spec", [RELU, JUMPRELU, TARGET, GATED, BATCHTOPK, MATRYOSHKA], ids=lambda spec: spec["architecture"])
def test_the_loss_has_no_scale(build, x, spec):
    """An SAE of activations ten times as large, with latents so, has the same loss: no weight has to be tuned to the scale."""
    sae, _ = build(**spec)
    before = sae.losses(x, x, Step(VARIANCE)).total.item()
    larger, _ = build(**spec)
    with torch.no_grad():
        for name in (*larger._BIASES, "b_dec"):
            getattr(larger, name).mul_(10)
        for name in larger._THRESHOLDS:
            getattr(larger, name).mul_(10)
    assert larger.losses(10 * x, 10 * x, Step(100 * VARIANCE)).total.item() == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("spec", [BATCHTOPK, MATRYOSHKA, TOPK], ids=lambda spec: spec["architecture"])
def test_k_is_the_one_of_the_step_while_it_is_annealed(build, x, spec):
    sae, _ = build(**spec, bias=50.0)
    assert [sae.losses(x, x, Step(VARIANCE, k=k)).fired_M.sum().item() for k in (None, 7, 1)] == [3 * 9, 7 * 9, 9]


@pytest.mark.parametrize("spec", ALL, ids=names(ALL))
def test_what_training_leaves_out_is_what_encode_leaves_out(build, x, spec):
    """Apart from BatchTopK, whose training looks at the batch: its latents are those above the threshold that it learns."""
    sae, _ = build(**spec)
    f = loss(sae, x, x)[1]
    if spec["architecture"] in ("batchtopk", "matryoshka"):
        sae.losses(x, x, Step(VARIANCE))
        smallest = f[f > 0].min()
        assert sae.threshold.unique().item() == pytest.approx(smallest.item(), rel=1e-6)
        f = torch.where(f > smallest, f, 0)
        torch.testing.assert_close(torch.where(sae.encode(x) > smallest * 1.0001, sae.encode(x), 0), f, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(sae.encode(x), f, rtol=1e-4, atol=1e-5)
