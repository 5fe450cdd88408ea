"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014).

- a gate, x W_enc + b_gate > 0, says which latents are active; their values are relu(x W_enc exp(r_mag) + b_mag): the same directions, so
  that there is one dense product (equation 7 of the paper)
- the gate has no gradient of its own: it learns from an L1 penalty on relu of its pre-activation, and from reconstructing by that through
  a decoder that is held fixed (equation 8); code that leaves these out has gates that never learn
- errors are shares of the activations' variance and the penalty one of its root, so that `l1` does not depend on their scale
- everything but the encoder's product touches open gates alone (kernels.py)
- names and shapes of the weights are SAELens'
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.saes import compiled, dense, latents
from pipeline.saes.base import SAE, Losses, Step, error_share
from pipeline.saes.product import product
from pipeline.study.sae import SAE as SAESpec
from pipeline.study.saes.gated import Gated as Spec


class Module(SAE):
    architecture = "gated"
    _FIRST = 1 / 3  # as relu.py
    _BIASES = ("b_gate", "b_mag")
    spec: Spec

    def __init__(self, spec: SAESpec, width: int, latents: int, out: int) -> None:
        super().__init__(spec, width, latents, out)
        del self.b_enc
        self.b_gate, self.b_mag, self.r_mag = (nn.Parameter(torch.zeros(latents)) for _ in range(3))

    def encode(self, x_BD: Tensor) -> Tensor:
        gate_BM = self.pre(self.centred(x_BD))
        return self._magnitude(gate_BM, self.r_mag.exp(), self._offset()) * (gate_BM > 0)

    def losses(self, x_BD: Tensor, y_BE: Tensor, at: Step) -> Losses:
        centred_BD = self.centred(x_BD)
        gate, f = self._opened(*latents.unrectified(centred_BD, self.W_enc, self.bias("b_gate")))
        rows = len(x_BD)
        (squared, by_gate), _ = f.errors(self.W_dec, self.b_dec, self.wanted(x_BD, y_BE), gate)
        parts = {
            "error": error_share(squared, rows, at.variance),
            "l1": gate.total() / (rows * at.variance**0.5),
            "gate_error": error_share(by_gate, rows, at.variance),
        }
        total = parts["error"] + at.sparsity * self.spec.l1 * parts["l1"] + parts["gate_error"]
        return Losses(total, parts, f.fired(), squared)

    def pre(self, centred_BD: Tensor) -> Tensor:
        """Pre-activations of the gate (B, M)."""
        return product(centred_BD, self.W_enc, self.bias("b_gate"))

    def _offset(self) -> Tensor:
        """Of the magnitude, beside the gate's pre-activation times exp(r_mag)."""
        return self.b_mag - self.b_gate * self.r_mag.exp()

    def _opened(self, pre: latents.Latents, bias_M: Tensor | None) -> tuple[latents.Latents, latents.Latents]:
        """The gate where it is open, and the values of the latents."""
        scale_M, offset_M = self.r_mag.exp(), self._offset()
        if pre.active is None and bias_M is not None and compiled.pays(pre.values.numel(), pre.values, bias_M, scale_M):
            gate_BM, f_BM, sums_M, counts_M = _Gated.apply(pre.values, bias_M, scale_M, offset_M)
            over_BM = gate_BM.detach()
            return latents.Latents(gate_BM, None, over_BM, sums_M), latents.Latents(f_BM, None, over_BM, counts_M=counts_M)
        gate = pre if pre.active is not None else latents.positive(pre.values, bias_M)
        return gate, gate.replaced(self._magnitude(gate.values, gate.spread(scale_M), gate.spread(offset_M)))

    @staticmethod
    def _magnitude(gate: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        return (gate * scale + offset).relu()

    @torch.no_grad()
    def restart(self, which_K: Tensor, norm: float = 1.0) -> None:
        super().restart(which_K, norm)
        self.r_mag[which_K] = 0.0

    def shift_pre(self, by_M: Tensor) -> None:
        self.b_gate.add_(by_M)
        self.b_mag.add_(by_M * self.r_mag.exp())


class _Gated(torch.autograd.Function):
    """Gate and values of dense latents in one pass over memory, and their gradients in another; the gate takes the place of `pre`. Also the
    sums of the gate and in how many rows each latent is not 0 (M,)."""

    @staticmethod
    def forward(ctx: Any, pre_BM: Tensor, bias_M: Tensor, scale_M: Tensor, offset_M: Tensor) -> tuple[Tensor, ...]:
        gate_BM, f_BM = pre_BM.detach(), torch.empty_like(pre_BM)
        sums_M, counts_M = torch.empty_like(scale_M), torch.empty(len(scale_M), dtype=torch.int32)
        compiled.parallel(dense.gated, len(scale_M), gate_BM, bias_M, scale_M, offset_M, f_BM, counts_M, sums_M)
        ctx.save_for_backward(gate_BM, f_BM, scale_M)
        ctx.mark_non_differentiable(counts_M)
        return gate_BM, f_BM, sums_M, counts_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gate: Tensor, grad_f: Tensor, grad_M: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gate_BM, f_BM, scale_M = ctx.saved_tensors
        out_BM, (of_bias, of_scale, of_offset) = torch.empty_like(gate_BM), (torch.empty_like(scale_M) for _ in range(3))
        given = (gate_BM, f_BM, scale_M, grad_gate.contiguous(), grad_f.contiguous(), grad_M.contiguous())
        compiled.parallel(dense.gated_back, len(scale_M), *given, out_BM, of_bias, of_scale, of_offset)
        return out_BM, of_bias, of_scale, of_offset
