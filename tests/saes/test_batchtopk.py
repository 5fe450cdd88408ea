"""BatchTopK's threshold, and the nested prefixes of its Matryoshka form; both against SAELens, where it is installed."""

import warnings

import pytest
import torch

from pipeline.saes.base import Step
from pipeline.saes.decoder import renormalise
from pipeline.study.kinds import kinds
from tests.saes.formulas import BATCHTOPK, MATRYOSHKA, VARIANCE, survivors

BOTH = pytest.mark.parametrize("spec", [BATCHTOPK, MATRYOSHKA], ids=["batchtopk", "matryoshka"])


@pytest.fixture(scope="module")
def saelens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens")


def batches(count: int) -> list[torch.Tensor]:
    return [torch.randn(9, 6, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 3) for seed in range(count)]


@BOTH
def test_the_threshold_is_a_running_mean_of_the_smallest_that_survive_which_forgets_the_beginning(build, spec):
    sae, _ = build(**spec)
    sae.batches.fill_(950)  # as if it had followed so many
    expected = 0.0
    for number, x in enumerate(batches(100), start=951):
        f = survivors(sae, x)
        rate = 10 / number if number <= 1000 else 0.01
        expected = (1 - rate) * expected + rate * f[f > 0].min().item()
        sae.losses(x, x, Step(VARIANCE))
        assert sae.threshold[0].item() == pytest.approx(expected, rel=1e-5)
    assert sae.average.item() == pytest.approx(expected, rel=1e-5)
    assert sae.average.dtype == torch.float64
    torch.testing.assert_close(sae.threshold, torch.full((20,), expected))


@pytest.mark.parametrize("numbers", [[5.0], [9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0.5], [5.0] * 20 + [3.0] * 80])
def test_after_few_batches_the_threshold_is_that_of_the_last_tenth(build, numbers):
    sae, _ = build(**BATCHTOPK)
    for number in numbers:
        sae._follow(torch.tensor(number))
    assert sae.average.item() == pytest.approx(numbers[-1], rel=1e-5)


@BOTH
def test_a_k_that_falls_leaves_nothing_in_the_threshold(build, spec):
    """While it falls the threshold is that of the last batch; then it is as if nothing had been before."""
    annealed, fresh = build(**spec)[0], build(**spec)[0]
    for k, x in zip((8, 7, 6, 6, 5, 4, 4), batches(7), strict=True):
        annealed.losses(x, x, Step(VARIANCE, k=k))
        smallest = annealed.pre(annealed.centred(x)).flatten().topk(9 * k).values[-1].item()
        assert annealed.average.item() == pytest.approx(smallest, rel=1e-5)
    for x in batches(30):
        annealed.losses(x, x, Step(VARIANCE, k=3))
        fresh.losses(x, x, Step(VARIANCE))
        assert torch.equal(annealed.threshold, fresh.threshold)


@BOTH
@pytest.mark.parametrize("steps", [100, 300])
def test_a_short_run_ends_with_as_many_latents_active_as_it_was_told(build, spec, steps):
    """The smallest that survives falls while an SAE learns: a mean over the run is far above it."""
    generator, k = torch.Generator().manual_seed(0), 8
    each = torch.nn.functional.normalize(torch.randn(256, 32, generator=generator), dim=1)
    x = (torch.rand(8000, 256, generator=generator) * (torch.rand(8000, 256, generator=generator) < 8 / 256)) @ each
    sae, _ = build(width=32, latents=256, **{**spec, "k": k})
    sae.initialise(x.mean(0))
    adam = torch.optim.Adam(sae.parameters(), lr=5e-3)
    variance = (x - x.mean(0)).square().sum(1).mean().item()
    for step in range(steps):
        adam.param_groups[0]["lr"] = 5e-3 * min(1.0, (step + 1) / 20, (steps - step) / (0.8 * steps))
        rows = x[torch.randint(7000, (256,), generator=generator)]
        sae.losses(rows, rows, Step(variance)).total.backward()
        adam.step()
        adam.zero_grad()
        renormalise(sae.W_dec)
    l0 = (sae.encode(x[7000:]) != 0).sum(1).double().mean().item()
    assert l0 == pytest.approx(k, rel=0.08)


@BOTH
def test_a_pre_activation_that_is_no_number_is_in_the_loss(build, x, spec):
    for latents in (20, 400):
        sae, _ = build(**spec, latents=latents)
        with torch.no_grad():
            sae.b_enc[3] = torch.nan
        assert sae.losses(x, x, Step(VARIANCE)).total.isnan()


@BOTH
def test_a_batch_in_which_nothing_survives_leaves_the_threshold(build, x, spec):
    sae, _ = build(**spec, bias=-1000.0)
    sae.losses(x, x, Step(VARIANCE)).total.backward()
    assert not sae.threshold.any()
    with torch.no_grad():
        sae.b_enc += 1000
    sae.losses(x, x, Step(VARIANCE))
    before = sae.threshold.clone()
    with torch.no_grad():
        sae.b_enc -= 1000
    sae.losses(x, x, Step(VARIANCE))
    assert before.min() > 0
    assert torch.equal(sae.threshold, before)


@BOTH
def test_after_training_as_many_latents_are_active_as_while_training(build, spec):
    """On average, and of no row a fixed number; as a plain ReLU there would be far more."""
    sae, _ = build(**spec, latents=200)
    rows = torch.randn(6000, 6, generator=torch.Generator().manual_seed(0))
    for x in rows.split(300):
        sae.losses(x, x, Step(VARIANCE))
    active = (sae.encode(rows) != 0).sum(1)
    assert active.float().mean().item() == pytest.approx(3, rel=0.05)
    assert len(active.unique()) > 3
    assert (sae.pre(sae.centred(rows)) > 0).sum() > 5 * active.sum()


def theirs(saelens, name: str, sae, **more):
    """SAELens' training SAE with our weights."""
    cfg_class = saelens.registry.get_sae_training_class(name)[1]
    cfg = cfg_class(d_in=6, d_sae=20, k=3, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=False, **more)
    found = saelens.registry.get_sae_training_class(name)[0](cfg)
    found.load_state_dict({**dict(sae.named_parameters()), "topk_threshold": torch.tensor(0.0, dtype=torch.float64)})
    return found


def a_step(sae, x: torch.Tensor):
    from sae_lens.saes.sae import TrainStepInput

    return sae.training_forward_pass(TrainStepInput(x, {}, None, 0, False))


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
def test_loss_and_threshold_are_saelens_own(build, saelens, name):
    """But for what the loss is divided by, and for where the threshold begins."""
    levels = [2, 8, 20]
    spec = BATCHTOPK if name == "batchtopk" else {**MATRYOSHKA, "prefixes": levels}
    sae, _ = build(**spec)
    other = theirs(saelens, name, sae, **({} if name == "batchtopk" else {"matryoshka_widths": levels}))
    sae.batches.fill_(1000)  # theirs begins at 0
    for x in batches(5):
        found, wanted = sae.losses(x, x, Step(VARIANCE)), a_step(other, x)
        scale = VARIANCE * (1 if name == "batchtopk" else len(levels))
        assert found.total.item() * scale == pytest.approx(wanted.loss.item(), rel=1e-5)
        assert torch.equal(found.fired_M, (wanted.feature_acts != 0).sum(0))
    assert sae.average.item() == pytest.approx(other.topk_threshold.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("prefixes", "sizes"),
    [([0.25, 0.5, 1], [5, 10, 20]), ([5, 10, 20], [5, 10, 20]), ([1], [20]), ([1 / 32, 3 / 32, 7 / 32, 15 / 32, 1], [1, 2, 4, 9, 20])],
)
def test_prefixes_are_shares_or_numbers(build, prefixes, sizes):
    _, settings = build(**{**MATRYOSHKA, "prefixes": prefixes})
    assert settings.sizes(20) == sizes
    assert settings.problems(6) == []


@pytest.mark.parametrize(
    ("prefixes", "problem"),
    [
        ([0.01, 1], "each has to hold more"),
        ([0.5, 0.51, 1], "each has to hold more"),
        ([5, 30], "30 of 20"),
        ([0.2, 0.9], "18 of 20"),
    ],
)
def test_prefixes_that_do_not_fit_the_latents_are_told(prefixes, problem):
    spec = kinds("saes")["matryoshka"](architecture="matryoshka", activations="a", latents=20, k=3, prefixes=prefixes)
    assert [problem in told for told in spec.problems(6)] == [True]


@pytest.mark.parametrize(("prefixes", "problem"), [([5, 4, 20], "have to rise"), ([0.5, 20], "all whole numbers"), ([], "at least 1")])
def test_prefixes_that_are_none_are_refused(prefixes, problem):
    with pytest.raises(ValueError, match=problem):
        kinds("saes")["matryoshka"](architecture="matryoshka", activations="a", prefixes=prefixes)


def test_a_single_prefix_is_batchtopk(build, x):
    (one, _), (other, _) = build(**BATCHTOPK), build(**{**MATRYOSHKA, "prefixes": [1]})
    for sae in (one, other):
        sae.losses(x, x, Step(VARIANCE)).total.backward()
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, msg=name)


def test_what_only_the_last_prefix_holds_has_a_smaller_part_of_the_loss(build, x):
    """A latent of the first prefix learns from all errors, one of the last from the last alone."""
    sae, _ = build(**{**MATRYOSHKA, "prefixes": [0.5, 1]}, bias=50.0)
    found = sae.losses(x, x, Step(VARIANCE))
    assert set(found.parts) == {"error", "error_0"}
    assert found.total.item() == pytest.approx((found.parts["error"].item() + found.parts["error_0"].item()) / 2, rel=1e-6)
    (grad,) = torch.autograd.grad(found.parts["error_0"], sae.W_dec)
    assert grad[:10].any()
    assert not grad[10:].any()
