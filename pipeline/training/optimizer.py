"""AdamW as a study sets it, its learning rate and beta following the schedule."""

import torch
from torch import Tensor, nn

from pipeline.study.training import Optimizer
from pipeline.training import schedule

_MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2}
"""Adam's, and the power of the gradient that each is a mean of."""


class ScheduledAdamW:
    """Fused AdamW over a module's parameters, for a run of a known number of steps."""

    def __init__(self, module: nn.Module, spec: Optimizer, steps: int) -> None:
        self.spec, self.steps, self.step_number = spec, steps, 0
        self.plateau = schedule.Plateau(spec.schedule)
        self.parameters = list(module.parameters())
        self.rows = [_by_row(p) for p in self.parameters]
        """The same memory in the order in which it lies: fused kernels copy what is not contiguous, forth and back."""
        self.fresh: dict[int, Tensor] = {}
        """Of some of `rows`, by number, the entries along their first dimension whose moments begin with the next gradient."""
        decayed = [p for p in self.rows if p.ndim > 1 or spec.decay == "all" or not spec.weight_decay]
        others = [p for p in self.rows if not any(p is one for one in decayed)]
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
        for row, parameter in zip(self.rows, self.parameters, strict=True):
            if row is not parameter:
                row.grad = None if parameter.grad is None else parameter.grad.T
                parameter.grad = None
        self._begin()
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.step_number += 1

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Adam's state of a parameter, moments in its shape."""
        row = next(row for row, one in zip(self.rows, self.parameters, strict=True) if one is parameter)
        return {name: value.T if row is not parameter and value.ndim else value for name, value in self.adamw.state[row].items()}

    @torch.no_grad()
    def forget(self, parameter: Tensor, index: Tensor) -> None:
        """Makes some entries of a parameter, along the dimension by which it lies in memory, begin anew: their moments are zeroed, and
        made of the next gradient as the first step of a run makes them. From zero alone, in the middle of a run, steps would be up to
        seven times as long as others for some hundred steps: Adam's correction makes up for zeros at the beginning alone."""
        number = next(number for number, one in enumerate(self.parameters) if one is parameter)
        for name, value in self.adamw.state[self.rows[number]].items():
            if name in _MOMENTS:
                value.index_fill_(0, index, 0.0)
        self.fresh[number] = index.clone()  # a snapshot has each in memory of its own

    @torch.no_grad()
    def _begin(self) -> None:
        for number, index in self.fresh.items():
            row = self.rows[number]
            if row.grad is None:
                continue
            state, grad = self.adamw.state[row], row.grad[index]
            for (name, power), beta in zip(_MOMENTS.items(), self.adamw.param_groups[0]["betas"], strict=True):
                state[name][index] = (1 - beta ** state["step"].item()) * grad**power  # what is left of it after Adam's correction is 1
        self.fresh = {}

    def tensors(self) -> dict[str, Tensor]:
        """Adam's state, by parameter number and name."""
        found = {}
        for number, row in enumerate(self.rows):
            for name, value in self.adamw.state[row].items():
                found[f"{number}.{name}"] = value
        return found | {f"{number}.fresh": index for number, index in self.fresh.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Goes on at `step` with the state that `tensors` gave there."""
        self.step_number = step
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            if name == "fresh":
                self.fresh[int(number)] = value.clone()
            else:
                self.adamw.state[self.rows[int(number)]][name] = value.clone()


def _by_row(parameter: Tensor) -> Tensor:
    """A parameter; a matrix that lies by column as its transpose, which shares its memory."""
    by_column = parameter.ndim == 2 and not parameter.is_contiguous() and parameter.T.is_contiguous()
    return nn.Parameter(parameter.detach().T, requires_grad=parameter.requires_grad) if by_column else parameter
