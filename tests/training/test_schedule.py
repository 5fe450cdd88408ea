"""Learning rates against PyTorch's own schedulers, and by hand where it has none."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from pipeline.study.sae import SAETraining
from pipeline.study.training import Optimizer
from pipeline.training import schedule


def spec(lr: float = 0.01, **shape) -> Optimizer:
    return Optimizer.model_validate({"lr": lr, "schedule": shape})


def rates(spec: Optimizer, steps: int) -> list[float]:
    return [schedule.at(spec, step, steps)[0] for step in range(steps)]


def torchs(make, steps: int, lr: float = 0.01) -> tuple[list[float], list[float]]:
    """Learning rate and momentum of each step of a torch scheduler."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    scheduler = make(optimizer)
    found = []
    for step in range(steps):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return [lr for lr, _ in found], [momentum for _, momentum in found]


RUNS = [
    (steps, rise) for steps in (2, 3, 11, 100, 800) for rise in (0.0, 0.1, 0.3, 0.5, 0.9) if rise * steps != 1
]  # 1: PyTorch divides by 0


@pytest.mark.parametrize(("steps", "rise"), RUNS)
def test_one_cycle_is_pytorchs(steps, rise):
    ours = [schedule.at(spec(0.03, shape="one-cycle", rise=rise), step, steps) for step in range(steps)]
    lr, momentum = torchs(lambda o: OneCycleLR(o, max_lr=0.03, total_steps=steps, pct_start=rise), steps, 0.03)
    assert [a for a, _ in ours] == pytest.approx(lr, rel=1e-9)
    assert [b for _, b in ours] == pytest.approx(momentum, rel=1e-9)


def test_one_cycle_by_hand():
    """From a 25th of the peak, to the peak, to a 10,000th of where it began; beta the other way."""
    ours = [schedule.at(spec(1.0, shape="one-cycle", rise=0.3), step, 100) for step in range(100)]
    assert ours[0] == pytest.approx((0.04, 0.95))
    assert ours[29] == pytest.approx((1.0, 0.85))
    assert ours[99] == pytest.approx((4e-6, 0.95))
    assert schedule.at(spec(1.0, shape="one-cycle", rise=0.1), 0, 10) == pytest.approx((1.0, 0.85)), "a rise of one step is the peak"
    assert 0 < schedule.at(spec(1.0, shape="one-cycle"), 0, 1)[0] <= 1.0


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_and_linear_are_pytorchs(final):
    cosine = torchs(lambda o: CosineAnnealingLR(o, T_max=50, eta_min=0.01 * final), 50)[0]
    assert rates(spec(shape="cosine", final=final), 50) == pytest.approx(cosine, rel=1e-6)
    linear = torchs(lambda o: LinearLR(o, start_factor=1.0, end_factor=final, total_iters=50), 50)[0]
    assert rates(spec(shape="linear", final=final), 50) == pytest.approx(linear, rel=1e-6)


def test_shapes_by_hand():
    assert rates(spec(1.0, shape="constant"), 4) == [1, 1, 1, 1]
    assert rates(spec(1.0, shape="constant", final=0.5), 4) == [1, 1, 1, 1]
    assert rates(spec(1.0, shape="linear"), 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(spec(1.0, shape="linear", final=0.2), 4) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert rates(spec(1.0, shape="cosine"), 4) == pytest.approx([1, 0.853553, 0.5, 0.146447], rel=1e-5)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_warmup_rises_in_equal_steps_to_the_rate_and_the_rest_follows(shape):
    found = rates(spec(1.0, shape=shape, warmup=4), 24)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:] == pytest.approx(rates(spec(1.0, shape=shape), 20))


def test_a_warmup_takes_at_most_a_quarter_of_the_run():
    assert rates(spec(1.0, shape="constant", warmup=100), 8) == [0.5, 1, 1, 1, 1, 1, 1, 1]
    assert rates(spec(1.0, shape="linear", warmup=10), 3)[0] == 1.0


def test_the_rate_is_held_before_it_falls():
    """Of the ten steps after a warm-up of two, six are held, and four fall to `final` one step after the last."""
    assert rates(spec(1.0, shape="linear", warmup=2, hold=0.6), 12) == pytest.approx([0.5, *[1] * 8, 0.75, 0.5, 0.25])
    assert rates(spec(1.0, shape="linear", warmup=2, hold=0.6, final=0.2), 12) == pytest.approx([0.5, *[1] * 8, 0.8, 0.6, 0.4])
    assert rates(spec(1.0, shape="cosine", hold=0.6), 10) == pytest.approx([*[1] * 7, 0.853553, 0.5, 0.146447], rel=1e-5)
    assert rates(spec(1.0, shape="linear", hold=0.5), 3) == pytest.approx([1, 1, 2 / 3]), "a fall may begin between two steps"
    assert rates(spec(1.0, shape="constant", hold=0.5), 4) == [1, 1, 1, 1]


def test_saes_hold_the_rate_for_four_fifths_of_the_run_after_the_warmup():
    given = SAETraining(lr=1.0)
    assert rates(given, 1100)[99:901] == [1.0] * 802
    assert rates(given, 1100)[1000] == pytest.approx(0.5)
    assert rates(given, 1100)[1099] == pytest.approx(1 / 200)
    assert rates(given, 40) == pytest.approx([n / 10 for n in range(1, 11)] + [1] * 25 + [n / 6 for n in range(5, 0, -1)])


def test_betas_of_other_shapes_are_the_studys():
    given = Optimizer.model_validate({"betas": [0.7, 0.8], "schedule": {"shape": "cosine", "warmup": 2}})
    assert {schedule.at(given, step, 9)[1] for step in range(9)} == {0.7}


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("factor", [0.5, 0.1])
def test_plateau_is_pytorchs(patience, factor):
    """Losses that fall, stand still, fall by less than its threshold, and rise."""
    losses = [3.0, 2.0, 1.9999, 2.0, 2.0, 2.5, 1.0, 0.99995, 0.9, 0.9, 0.9, 0.9, 0.9, 1.0, 0.5, 0.6, 0.7, 0.8, 0.9]
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = ReduceLROnPlateau(optimizer, factor=factor, patience=patience, eps=0)
    ours = schedule.Plateau(spec(shape="plateau", factor=factor, patience=patience).schedule)
    for loss in losses:
        theirs.step(loss)
        ours.measured(loss)
        assert ours.factor == pytest.approx(optimizer.param_groups[0]["lr"])
        again = schedule.Plateau(ours.spec)
        again.restore(ours.state())
        assert vars(again) == vars(ours)


def test_no_other_schedule_listens_to_losses():
    plateau = schedule.Plateau(spec(shape="cosine").schedule)
    for _ in range(20):
        plateau.measured(1.0)
    assert plateau.factor == 1
