"""Shifted ReLU SAE: f = max(z - theta, 0), which the study of activation functions ashioyajotham/exploring_saes calls JumpReLU (jumprelu.py
is the literature's, Rajamanoharan et al. 2024: z where z > theta).

- z = W x + b with a learned b, so that f = max(W x + (b - theta), 0): b_enc here is b - theta, and begins at -theta. Training moves both
  alike (but for weight decay of biases, which would draw b - theta to 0), and what is saved is a plain ReLU SAE
- no penalty unless asked for; the loss is relu.py's
"""

import torch
from torch import Tensor

from pipeline.saes import relu
from pipeline.study.saes.shifted_relu import ShiftedReLU as Spec


class Module(relu.Module):
    spec: Spec

    @torch.no_grad()
    def initialise(self, centre_E: Tensor, x_BD: Tensor | None = None) -> None:
        super().initialise(centre_E, x_BD)
        if self.spec.init == "linear":
            self.b_enc.sub_(self.spec.theta)

    @torch.no_grad()
    def restart(self, which_K: Tensor, norm: float = 1.0) -> None:
        self.b_enc[which_K] = -norm * self.spec.theta
