"""AdamW as a study sets it, its learning rate and beta following the schedule."""

import torch
from torch import Tensor, nn

from pipeline.study.training import Optimizer
from pipeline.training import schedule


class ScheduledAdamW:
    """Fused AdamW over a module's parameters, for a run of a known number of steps."""

    def __init__(self, module: nn.Module, spec: Optimizer, steps: int) -> None:
        self.spec, self.steps, self.step_number = spec, steps, 0
        self.plateau = schedule.Plateau(spec.schedule)
        self.parameters = list(module.parameters())
        decayed = [p for p in self.parameters if p.ndim > 1 or spec.decay == "all" or not spec.weight_decay]
        others = [p for p in self.parameters if not any(p is one for one in decayed)]
        groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=spec.lr, betas=spec.betas, fused=True)

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return self.adamw.param_groups[0]["lr"]

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient, before it is clipped ()."""
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, norm: Tensor | None = None) -> None:
        """Clips, updates with this step's learning rate, and clears the gradients. `norm`: the gradient's, where it is known."""
        lr, beta1 = schedule.at(self.spec, self.step_number, self.steps)
        for group in self.adamw.param_groups:
            group["lr"], group["betas"] = lr * self.plateau.factor, (beta1, self.spec.betas[1])
        if self.spec.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.spec.clip, self.gradient_norm() if norm is None else norm)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.step_number += 1

    @torch.no_grad()
    def forget(self, parameter: Tensor, axis: int, index: Tensor) -> None:
        """Zeroes the moments of some entries of a parameter along a dimension: they begin anew."""
        for name in ("exp_avg", "exp_avg_sq"):
            if name in self.adamw.state[parameter]:
                self.adamw.state[parameter][name].index_fill_(axis, index, 0.0)

    def tensors(self) -> dict[str, Tensor]:
        """Adam's state, by parameter number and name."""
        found = {}
        for number, parameter in enumerate(self.parameters):
            for name, value in self.adamw.state[parameter].items():
                found[f"{number}.{name}"] = value
        return found

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Goes on at `step` with the state that `tensors` gave there."""
        self.step_number = step
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            parameter = self.parameters[int(number)]
            # Fused kernels go through memory: a moment has to be laid out as its parameter is.
            like = parameter if value.shape == parameter.shape else value
            self.adamw.state[parameter][name] = torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
