"""Online SAE: a ReLU dictionary of each hook that learns while the model does, and whose loss reaches the model.

- x is centred and scaled by the batch: x~ = (x - mean) / s, s^2 the mean squared norm of x - mean. The error is then a share of the
  variance, and the model gains nothing by making its activations small
- loss: mean |x~ - W_dec f - b_dec|^2 + sparsity x mean sum f, f = relu(W_enc (x~ - b_dec) + b_enc), rows of the decoder of norm 1
- one backward through the dictionary, inside `term`: its own gradient is kept for its own Adam, at full strength whatever the
  weight; the gradient for x is handed to the model's backward, which scales it by the weight
"""

from math import nan
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.objectives import base
from pipeline.study.objectives.online_sae import OnlineSAE as Spec

_LEAST = 1e-20  # variance below which activations count as constant


class Dictionary(nn.Module):
    """The SAE of one hook, D wide with M latents: random unit rows, encoder and decoder alike."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        rows_MD = F.normalize(torch.randn(latents, width))
        self.W_enc, self.b_enc = nn.Parameter(rows_MD.clone()), nn.Parameter(torch.zeros(latents))
        self.W_dec, self.b_dec = nn.Parameter(rows_MD), nn.Parameter(torch.zeros(width))

    def forward(self, x_nD: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of each token (n), and latents (n, M)."""
        f_nM = F.linear(x_nD - self.b_dec, self.W_enc, self.b_enc).relu()
        return (x_nD - torch.addmm(self.b_dec, f_nM, self.W_dec)).square().sum(1), f_nM


class _Handed(torch.autograd.Function):
    """`loss`, whose gradient for `value` is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None, None


class Objective(base.Objective[Spec]):
    def __init__(self, spec: Spec, hooks: list[str], width: int) -> None:
        super().__init__(spec, hooks, width)
        self.sparsity, self.every, self.reaches_model = spec.sparsity, spec.every, spec.reaches_model
        self.number = {hook: n for n, hook in enumerate(hooks)}
        self.saes = nn.ModuleList(Dictionary(width, spec.latents or 4 * width) for _ in hooks)
        self.adam = torch.optim.Adam(self.parameters(), lr=spec.lr, fused=True)
        self.steps = 0
        """Steps of the model so far."""
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        """Share of the variance that is not explained, and active latents per token, of each hook's last batch."""

    def at_hook(self, hook: str, value_nD: Tensor, ids_n: Tensor) -> Tensor:
        sae = cast(Dictionary, self.saes[self.number[hook]])
        learning = torch.is_grad_enabled() and self.steps % self.every == 0
        reaching = torch.is_grad_enabled() and self.reaches_model and value_nD.requires_grad
        x_nD = value_nD.detach().requires_grad_(reaching)
        loss = self._loss(sae, x_nD, hook)
        own = list(sae.parameters()) if learning else []
        wanted = [x_nD] * reaching + own
        found = list(torch.autograd.grad(loss, wanted)) if wanted else []
        handed = _Handed.apply(value_nD, loss.detach(), found.pop(0)) if reaching else loss.detach()
        # Parts of a batch add up; Adam does not mind their number.
        for parameter, gradient in zip(own, found, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return handed

    def _loss(self, sae: Dictionary, x_nD: Tensor, hook: str) -> Tensor:
        centred_nD = x_nD - x_nD.mean(0)
        variance = centred_nD.square().sum(1).mean()
        error_n, f_nM = sae(centred_nD * variance.clamp_min(_LEAST).rsqrt())
        error = error_n.mean()
        self.seen[hook] = error.detach(), (f_nM.detach() > 0).sum(1).double().mean()
        return error + self.sparsity * f_nM.sum(1).mean()

    @torch.no_grad()
    def end_step(self) -> None:
        if self.steps % self.every == 0:
            self._learn()
        self.steps += 1

    def _learn(self) -> None:
        for parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if dist.is_initialized():
                dist.all_reduce(parameter.grad)
        decoders = [cast(Dictionary, sae).W_dec for sae in self.saes]
        for rows_MD in decoders:
            # What would only change the norm would go into Adam's moments all the same (Bricken et al. 2023).
            gradient_MD = cast(Tensor, rows_MD.grad)
            gradient_MD -= (gradient_MD * rows_MD).sum(1, keepdim=True) * rows_MD
        self.adam.step()
        self.adam.zero_grad()
        for rows_MD in decoders:
            rows_MD.copy_(F.normalize(rows_MD))

    def tracked(self) -> dict[str, float]:
        """FVE and L0 on the last batch that had a token to draw, means over the layers."""
        if not self.seen:
            return {"fve": nan, "l0": nan}
        missed, active = (torch.stack([pair[n].double() for pair in self.seen.values()]).mean().item() for n in (0, 1))
        return {"fve": 1 - missed, "l0": active}

    def resume_state(self) -> dict[str, Tensor]:
        found = {f"saes.{name}": value for name, value in self.saes.state_dict().items()}
        for number, parameter in enumerate(self.parameters()):
            found |= {f"adam.{number}.{name}": value for name, value in self.adam.state[parameter].items()}
        return {**found, "steps": torch.tensor(self.steps)}

    def resume(self, state: dict[str, Tensor]) -> None:
        self.saes.load_state_dict({name.removeprefix("saes."): value for name, value in state.items() if name.startswith("saes.")})
        self.steps = int(state["steps"])
        adam: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                number, name = key.removeprefix("adam.").split(".")
                adam.setdefault(int(number), {})[name] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": adam})
