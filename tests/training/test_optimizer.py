"""AdamW as the study sets it, against PyTorch's plain AdamW."""

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from pipeline.study.training import Optimizer
from pipeline.training.curve import Curve
from pipeline.training.optimizer import ScheduledAdamW


def module() -> nn.Module:
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.uniform_(0.5, 1.5)
    return found


def push(model: nn.Module, step: int, size: float = 1.0) -> None:
    """Gradients that are a function of the step."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


def spec(**settings) -> Optimizer:
    return Optimizer.model_validate({"lr": 0.05, "schedule": {"shape": "linear"}, **settings})


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_steps_are_adamws_with_the_schedules_rate(decay):
    ours, theirs = module(), module()
    scheduled = ScheduledAdamW(ours, spec(weight_decay=0.3, betas=[0.8, 0.9], decay=decay), steps=5)
    for step in range(5):
        lr = 0.05 * (1 - step / 5)
        if step == 0:
            matrices = [p for p in theirs.parameters() if p.ndim == 2]
            vectors = [p for p in theirs.parameters() if p.ndim == 1]
            plain = torch.optim.AdamW(
                [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.3 if decay == "all" else 0.0}],
                lr=lr, betas=(0.8, 0.9), foreach=False, fused=False,
            )  # fmt: skip
        for group in plain.param_groups:
            group["lr"] = lr
        push(ours, step)
        push(theirs, step)
        scheduled.step()
        plain.step()
        assert scheduled.lr == pytest.approx(lr)
        assert all(p.grad is None for p in ours.parameters())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("decay", "shrunk"), [("matrices", [2]), ("all", [1, 2])])
def test_without_a_gradient_weights_shrink_by_rate_times_decay_and_others_stay(decay, shrunk):
    model, before = module(), module()
    scheduled = ScheduledAdamW(model, spec(weight_decay=0.5, decay=decay, schedule={"shape": "constant"}), steps=9)
    push(model, 0, size=0.0)
    scheduled.step()
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(a, b * (1 - 0.05 * 0.5) if b.ndim in shrunk else b)


def test_gradients_are_scaled_down_to_the_norm_and_never_up():
    def after(clip, size):
        model = module()
        scheduled = ScheduledAdamW(model, spec(clip=clip, betas=[0.0, 0.999]), steps=3)
        seen = []
        scheduled.adamw.register_step_pre_hook(
            lambda *_: seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        )
        push(model, 0, size)
        scheduled.step()
        return seen[0]

    plain = after(None, 1.0)
    assert plain > 3
    assert after(1.0, 1.0) == pytest.approx(1.0, rel=1e-4)
    assert after(1.0, 1e-3) == pytest.approx(plain * 1e-3, rel=1e-4)


def test_one_cycle_moves_the_first_beta_alone():
    model = module()
    scheduled = ScheduledAdamW(model, spec(betas=[0.5, 0.6], schedule={"shape": "one-cycle"}), steps=10)
    seen = []
    for step in range(10):
        push(model, step)
        scheduled.step()
        seen.append(scheduled.adamw.param_groups[-1]["betas"])
    assert seen[0] == pytest.approx((0.95, 0.6))
    assert seen[2] == pytest.approx((0.85, 0.6))
    assert seen[9] == pytest.approx((0.95, 0.6))


def test_a_curve_reads_back_as_it_was_written(tmp_path):
    curve = Curve()
    curve.add(step=1, loss=0.1, lr=1e-3)
    curve.add(step=20, loss=1 / 3, lr=0.0)
    curve.write(tmp_path / "training.parquet")
    assert pq.read_table(tmp_path / "training.parquet").to_pylist() == curve.rows


def test_a_restored_run_goes_on_alike_whatever_the_layout_of_a_weight():
    """Fused kernels go through memory in the order of the weight's; a moment that came from a file may lie in another."""

    def made() -> nn.Module:
        found = nn.Module()
        found.weight = nn.Parameter(torch.arange(12.0).reshape(4, 3).T)
        return found

    whole, resumed = made(), made()
    ours, other = (ScheduledAdamW(one, spec(), steps=5) for one in (whole, resumed))
    for step in range(5):
        if step == 2:
            resumed.load_state_dict(whole.state_dict())
            other.restore({name: value.contiguous() for name, value in ours.tensors().items()}, step)
        push(whole, step)
        ours.step()
        if step >= 2:
            push(resumed, step)
            other.step()
    assert torch.equal(whole.weight, resumed.weight)


def test_forgotten_entries_begin_anew_and_others_do_not():
    model = module()
    scheduled = ScheduledAdamW(model, spec(), steps=5)
    push(model, 0)
    scheduled.step()
    weight = model[0].weight
    before = {name: value.clone() for name, value in scheduled.state(weight).items()}
    scheduled.forget(weight, torch.tensor([0, 2]))
    for name in ("exp_avg", "exp_avg_sq"):
        found = scheduled.state(weight)[name]
        assert not found[[0, 2]].any()
        assert torch.equal(found[1], before[name][1])
        assert found[1].all()


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_forgotten_entries_take_a_first_step_as_long_as_that_of_a_run(scale, restored):
    """Adam's first step is `lr` in each direction, whatever the gradient; moments that are zero in the middle of a run would make three
    times that. Of a weight that lies by column, and after a snapshot between."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(4, 3).T)
    settings = spec(schedule={"shape": "constant"})
    scheduled = ScheduledAdamW(module, settings, steps=300)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        module.weight.grad = torch.randn(4, 3, generator=generator).T
        scheduled.step()
    scheduled.forget(module.weight, torch.tensor([1, 3]))
    if restored:
        tensors = scheduled.tensors()
        scheduled = ScheduledAdamW(module, settings, steps=300)
        scheduled.restore(tensors, 200)
    before, grad = module.weight.detach().clone(), scale * torch.randn(4, 3, generator=generator).T
    module.weight.grad = grad.clone()
    scheduled.step()
    moved = module.weight.detach() - before
    torch.testing.assert_close(moved[:, [1, 3]], -scheduled.lr * grad[:, [1, 3]].sign(), rtol=1e-3, atol=1e-7)
    state = scheduled.state(module.weight)
    torch.testing.assert_close(state["exp_avg"][:, [1, 3]], grad[:, [1, 3]] * (1 - settings.betas[0] ** 201))
    torch.testing.assert_close(state["exp_avg_sq"][:, [1, 3]], grad[:, [1, 3]].square() * (1 - settings.betas[1] ** 201))
    module.weight.grad = grad.clone()
    scheduled.step()
    assert not scheduled.fresh
