"""JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435).

- f = z where z > theta, else 0, theta learned for each latent; the loss is the error, as a share of the activations' variance, plus a
  weight times L0
- neither depends on theta smoothly: its gradient is the paper's straight-through estimate, from the pre-activations in a band around it
  (equations 11 and 12). As in the paper, and by default in SAELens, no such gradient reaches the encoder
- theta is learned as it is, in float32, and kept from falling below 0. Its logarithm, as in the paper, moves with Adam by a share of
  itself and hardly leaves a small beginning in the steps of a usual run
- to reach a target L0, with g = L0 / target - 1, the penalty is multiplier x g + g^2, where the multiplier grows by g at a small rate (the
  method of multipliers). The square alone, as in dictionary-learning and Gemma Scope 2, ends beside the target; and far off it goes on as a
  line, since Adam would remember the steepness of the beginning for a thousand steps, in which thresholds hardly move. The error is about 1
  at most, where no latent is active, so that no scale has to be tuned
- the encoder's product is in float32 whatever the precision of others: rounded to bfloat16, hardly a pre-activation would lie in the band
- products touch the pre-activations above the band's lower edge alone, once those are few (kernels.py)
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.saes import compiled, dense, latents
from pipeline.saes.base import SAE, Losses, Step, error_share
from pipeline.saes.product import kept
from pipeline.study.sae import SAE as SAESpec
from pipeline.study.saes.jumprelu import JumpReLU as Spec

RATE = 1e-3
NEAR = 0.5
"""Where |g| is larger, the square goes on as a line, and the multiplier stays: what would add up on the way would carry L0 beyond."""


class Module(SAE):
    architecture = "jumprelu"
    _THRESHOLDS = ("threshold",)
    spec: Spec
    multiplier: Tensor

    def __init__(self, spec: SAESpec, width: int, latents: int, out: int) -> None:
        super().__init__(spec, width, latents, out)
        self.threshold = nn.Parameter(torch.zeros(latents))
        begin = self.spec.l0 * (self.spec.target_l0 or 0.0)
        self.register_buffer("multiplier", torch.tensor(begin, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def initialise(self, centre_E: Tensor, x_BD: Tensor | None = None) -> None:
        self.threshold.fill_(self.spec.begins(len(self.threshold)))
        super().initialise(centre_E, x_BD)

    @torch.no_grad()
    def restart(self, which_K: Tensor, norm: float = 1.0) -> None:
        super().restart(which_K, norm)
        self.threshold[which_K] = norm * self.spec.begins(len(self.threshold))

    def pre(self, centred_BD: Tensor) -> Tensor:
        """Pre-activations (B, M), in float32 under autocast as well."""
        with torch.autocast(centred_BD.device.type, enabled=False):
            return super().pre(centred_BD)

    def encode(self, x_BD: Tensor) -> Tensor:
        pre_BM = self.pre(self.centred(x_BD))
        return pre_BM.relu() * (pre_BM > self.threshold)

    def losses(self, x_BD: Tensor, y_BE: Tensor, at: Step) -> Losses:
        if self.training:
            with torch.no_grad():
                self.threshold.clamp_(min=0)
        centred_BD = self.centred(x_BD)
        lower_M = self.threshold - self.spec.bandwidth / 2  # below it, jump has neither value nor gradient
        z, bias_M = latents.unrectified(centred_BD, self.W_enc, self.bias(), lower_M, precise=True)
        values, active, counts_M = jump(z.values, z.spread(self.threshold), self.spec.bandwidth, bias_M)
        f = replace(z, values=values, over_BM=values.detach(), counts_M=counts_M)
        squared, _ = self.error(f, x_BD, y_BE)
        rows = len(x_BD)
        parts = {"error": error_share(squared, rows, at.variance), "penalty": self._penalty(active, rows, at)}
        return Losses(parts["error"] + at.sparsity * parts["penalty"], parts, f.fired(), squared)

    def _penalty(self, active: Tensor, rows: int, at: Step) -> Tensor:
        """L0 is of this process' rows, and so its gradient; how far it is off is of the whole batch."""
        l0, target = active / rows, self.spec.target_l0
        if target is None:
            return self.spec.l0 * l0
        off = at.summed(active.detach()) / at.summed(torch.tensor(rows, device=l0.device)) / target - 1
        held = off.clamp(-NEAR, NEAR)
        value, slope = self.multiplier * off + (2 * off - held) * held, (self.multiplier + 2 * held) / target
        if self.training and abs(off) < NEAR:
            self.multiplier += RATE * off
        return value.to(l0.dtype) + slope.to(l0.dtype) * (l0 - l0.detach())


def jump(z: Tensor, theta: Tensor, bandwidth: float, bias_M: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """JumpReLU of z + bias, how many are active (), and, where the pass that takes it tells it, in how many rows each latent is; with
    straight-through gradients to theta, of z's shape or of each column."""
    if bias_M is not None and compiled.pays(z.numel(), z, bias_M, theta):
        f, counts_M = _JumpInOnePass.apply(z, bias_M, theta, bandwidth)
        return f, counts_M.sum(), counts_M.detach()
    return *_Jump.apply(z if bias_M is None else z + bias_M, theta, bandwidth), None


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        above = z - theta
        return kept(z, above), (above > 0).sum().to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_f: Tensor, grad_active: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        above = z - theta
        grad_z = kept(grad_f, above)
        inside = above.abs_().neg_().add_(ctx.bandwidth / 2)  # positive in the band
        of_f, inside = kept(grad_f, inside), inside.relu_().sign_()
        if theta.ndim < z.ndim:
            of_f, inside = of_f.sum(0), inside.sum(0)
        return grad_z, -(theta * of_f + grad_active * inside) / ctx.bandwidth, None


class _JumpInOnePass(torch.autograd.Function):
    """Of dense z, by loops; the second output is in how many rows each latent is active (M,)."""

    @staticmethod
    def forward(ctx: Any, z_BM: Tensor, bias_M: Tensor, theta_M: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        f_BM, counts_M = torch.empty_like(z_BM), torch.empty(len(theta_M), dtype=torch.int32)
        compiled.parallel(dense.jump, len(theta_M), z_BM, bias_M, theta_M, f_BM, counts_M)
        ctx.save_for_backward(z_BM, bias_M, theta_M)
        ctx.bandwidth = bandwidth
        return f_BM, counts_M.to(z_BM.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BM: Tensor, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        z_BM, bias_M, theta_M = ctx.saved_tensors
        out_BM, sums_M, of_band_M = torch.empty_like(z_BM), torch.empty_like(bias_M), torch.empty_like(theta_M)
        inside_M = torch.empty(len(theta_M), dtype=torch.int32)
        given = (z_BM, bias_M, theta_M, np.float32(ctx.bandwidth / 2), grad_BM.contiguous())
        compiled.parallel(dense.jump_back, len(theta_M), *given, out_BM, sums_M, of_band_M, inside_M)
        return out_BM, sums_M, -(theta_M * of_band_M + grad_M * inside_M) / ctx.bandwidth, None
