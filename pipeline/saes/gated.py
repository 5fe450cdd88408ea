"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014).

- a gate, x W_enc + b_gate > 0, says which latents are active; their values are relu(x W_enc exp(r_mag) + b_mag): the same directions, so
  that there is one dense product (equation 7 of the paper)
- the gate has no gradient of its own: it learns from an L1 penalty on relu of its pre-activation, and from reconstructing by that through
  a decoder that is held fixed (equation 8); code that leaves these out has gates that never learn
- errors are shares of the activations' variance and the penalty one of its root, so that `l1` does not depend on their scale
- everything but the encoder's product touches open gates alone (kernels.py)
- names and shapes of the weights are SAELens'
"""

from dataclasses import replace
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
        gate = latents.above(centred_BD, self.W_enc, self.bias("b_gate"))
        f = self._magnitudes(gate)
        rows = len(x_BD)
        decoded_BE, gate_BE = f.decode_both(gate, self.W_dec)
        squared = (self.completed(decoded_BE, x_BD) - y_BE).square().sum()
        by_gate_BE = gate_BE + self.b_dec.detach()
        if self.W_skip is not None:
            by_gate_BE = by_gate_BE + x_BD @ self.W_skip.detach().T
        parts = {
            "error": error_share(squared, rows, at.variance),
            "l1": gate.values.sum() / (rows * at.variance**0.5),
            "gate_error": error_share((by_gate_BE - y_BE).square().sum(), rows, at.variance),
        }
        total = parts["error"] + at.sparsity * self.spec.l1 * parts["l1"] + parts["gate_error"]
        return Losses(total, parts, f.fired(), squared)

    def pre(self, centred_BD: Tensor) -> Tensor:
        """Pre-activations of the gate (B, M)."""
        return product(centred_BD, self.W_enc, self.bias("b_gate"))

    def _offset(self) -> Tensor:
        """Of the magnitude, beside the gate's pre-activation times exp(r_mag)."""
        return self.b_mag - self.b_gate * self.r_mag.exp()

    def _magnitudes(self, gate: latents.Latents) -> latents.Latents:
        scale_M, offset_M = self.r_mag.exp(), self._offset()
        if gate.active is None and compiled.pays(gate.values.numel(), gate.values, gate.over_BM, scale_M):
            return replace(gate, values=_Scaled.apply(gate.values, gate.over_BM, scale_M, offset_M))
        return gate.replaced(self._magnitude(gate.values, gate.spread(scale_M), gate.spread(offset_M)))

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


class _Scaled(torch.autograd.Function):
    """Magnitudes of dense latents in one pass over memory, and their gradients in another."""

    @staticmethod
    def forward(ctx: Any, gate_BM: Tensor, over_BM: Tensor, scale_M: Tensor, offset_M: Tensor) -> Tensor:
        f_BM = torch.empty_like(gate_BM)
        compiled.parallel(dense.scaled, len(scale_M), gate_BM, over_BM, scale_M, offset_M, f_BM)
        ctx.save_for_backward(gate_BM, f_BM, scale_M)
        return f_BM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor | None, ...]:
        gate_BM, f_BM, scale_M = ctx.saved_tensors
        grad_gate, grad_scale, grad_offset = torch.empty_like(gate_BM), torch.empty_like(scale_M), torch.empty_like(scale_M)
        given = (gate_BM, f_BM, scale_M, grad_BM.contiguous())
        compiled.parallel(dense.scaled_back, len(scale_M), *given, grad_gate, grad_scale, grad_offset)
        return grad_gate, None, grad_scale, grad_offset
