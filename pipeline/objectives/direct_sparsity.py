"""Direct sparsity: a hook's value x flows on as W_dec relu(W_enc x + b_enc) + b_dec, through more codes than x has dimensions.

- the term is the mean over tokens and codes of a code times the norm of its decoder column (Conerly et al. 2024, "Update on how
  we train SAEs"): without the norm it would fall by making the encoder small and the decoder large
- it starts as the identity: the encoder's rows come in pairs w, -w whose w have orthonormal columns, the decoder is its
  transpose, so that the sum of w relu(w x) - w relu(-w x) is x
- part of the model: codes act at inference as well. A tap sees them as `<hook>.codes` (B, T, M) and may change them
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.hooks import Tap
from pipeline.objectives import base
from pipeline.study.objectives.direct_sparsity import DirectSparsity as Spec


class Codes(nn.Module):
    """Encoder and decoder of one hook, D wide with M codes."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        half = nn.init.orthogonal_(torch.empty(latents // 2, width))
        self.W_enc = nn.Parameter(torch.cat([half, -half]))
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(self.W_enc.detach().T.contiguous())
        self.b_dec = nn.Parameter(torch.zeros(width))

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., M) of x (..., D)."""
        return F.linear(x, self.W_enc, self.b_enc).relu()

    def decode(self, codes: Tensor) -> Tensor:
        """What flows on (..., D)."""
        return F.linear(codes, self.W_dec, self.b_dec)


class Objective(base.Objective[Spec]):
    shaping = True

    def __init__(self, spec: Spec, hooks: list[str], width: int) -> None:
        super().__init__(spec, [f"{hook}.codes" for hook in hooks], width)
        self.codes = nn.ModuleList(Codes(width, spec.latents or 4 * width) for _ in hooks)
        self.number = {hook: n for n, hook in enumerate(hooks)}

    def of(self, hook: str) -> Codes:
        """The codes of a hook."""
        return cast(Codes, self.codes[self.number[hook]])

    def forward(self, name: str, value: Tensor, tap: Tap) -> Tensor:
        if name not in self.number:
            return value
        codes = self.of(name)
        return codes.decode(tap(f"{name}.codes", codes.encode(value)))

    def at_hook(self, hook: str, value_nD: Tensor, ids_n: Tensor) -> Tensor:
        norm_M = self.of(hook.removesuffix(".codes")).W_dec.norm(dim=0)
        return (value_nD @ norm_M).mean() / len(norm_M)
