"""Baby Dragon Hatchling (Kosowski et al. 2025, arXiv 2509.26507).

- one set of weights for all levels: `encoder` makes neurons of the stream, `encoder_v` of what attention read, `decoder` maps the
  product of both back; norms have no weights, init is N(0, 0.02)
- attention is linear and strictly causal: queries and keys are the rotated neurons, values the stream; no softmax, no scale,
  and nothing of a token's own position, so that at position 0 nothing is read and `xy_sparse` is 0
- so all of the past fits in one memory (N, D) for each head and level: sessions and texts longer than `context` carry it
- neurons are numbered head by head, u = h N + i; parameters are named as in the reference implementation
A forward that a tap sees into runs in bdh_tapped.py, any other in bdh_fused.py, which is faster; they agree bit for bit.
Shapes as in bdh_parts.py.
"""

import torch
from torch import Tensor, nn

from pipeline.models.bdh_export import export
from pipeline.models.bdh_fused import FusedLevels, fused
from pipeline.models.bdh_parts import Dropout, Plan, Rotation, Weights, frequencies, groups, normed, spans
from pipeline.models.bdh_tapped import TappedLevels
from pipeline.models.hooks import Tap, untouched, watches
from pipeline.models.language import LanguageModel, Session
from pipeline.study.models.bdh import BDH as Spec

__all__ = ["Model", "Spec", "export"]

Memories = list[list[Tensor | None]]
"""What each head of each level has written, (R, N, D); None before anything was."""


class Attention(nn.Module):
    """Holds the frequencies, which are not trained: (1, 1, 1, N), turns per token."""

    freqs: Tensor

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.register_buffer("freqs", frequencies(neurons).view(1, 1, 1, -1))


class Model(LanguageModel):
    """token ids (B, T) -> logits (B, T, vocabulary)."""

    def __init__(self, spec: Spec, facts: dict) -> None:
        super().__init__()
        self.levels, self.heads, self.dropout, self.context = spec.layers, spec.heads, spec.dropout, spec.context
        self.encoder = nn.Parameter(torch.empty(spec.heads, spec.width, spec.neurons))
        self.encoder_v = nn.Parameter(torch.empty(spec.heads, spec.width, spec.neurons))
        self.decoder = nn.Parameter(torch.empty(spec.heads * spec.neurons, spec.width))
        self.embed = nn.Embedding(facts["vocabulary"], spec.width)
        self.lm_head = nn.Parameter(torch.empty(spec.width, facts["vocabulary"]))
        self.attn = Attention(spec.neurons)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    @torch.compiler.disable  # inductor has no complex products, and the fused forward leaves it nothing to fuse
    def compute(self, ids_BT: Tensor, tap: Tap) -> Tensor:
        B, T = ids_BT.shape
        plan = self._plan(B, T)
        x, weights = normed(self.embed(ids_BT)), self._weights()
        differentiable = torch.is_grad_enabled() and any(one.requires_grad for one in (x, *weights))
        if tap is untouched and (not differentiable or self.context >= T):
            x = fused(x, weights, plan, differentiable)
        else:
            for n in range(self.levels):
                x = self._level(x, n, weights.to(plan.dtype), plan, tap, differentiable)
        return x @ self.lm_head

    def _level(self, x: Tensor, n: int, weights: Weights, plan: Plan, tap: Tap, differentiable: bool) -> Tensor:
        """Level `n`; its wide hooks are made only where the tap has to see one."""
        if differentiable or any(watches(tap, f"blocks.{n}.{hook}") for hook in ("x_sparse", "y_kv", "xy_sparse")):
            return TappedLevels(weights, plan, tap).forward(x, n)
        parts = groups(len(x), x.shape[1], plan.context)
        return tap(f"blocks.{n}.resid_post", torch.cat([FusedLevels(weights, plan, g).forward(x[some], n) for g, some in enumerate(parts)]))

    def session(self) -> Session:
        """A text to be fed piece by piece, of any length: what a token costs does not grow with the text before it."""
        memories: Memories = [[None] * self.heads for _ in range(self.levels)]
        tap = self._shaped(untouched) if self.shaping else untouched
        position = 0

        @torch.no_grad()
        def feed(ids: Tensor) -> Tensor:
            nonlocal position
            for piece in ids.split(self.context):
                x = self._stretch(piece[None], memories, position, tap)
                position += len(piece)
            return (x[:, -1] @ self.lm_head)[0]

        return feed

    def _stretch(self, ids_1C: Tensor, memories: Memories, start: int, tap: Tap) -> Tensor:
        """The stream (1, C, D) of a chunk of a text that begins at position `start`; brings `memories` up to date."""
        x, plan = normed(self.embed(ids_1C)), self._plan(*ids_1C.shape)
        weights = self._weights().to(plan.dtype)
        levels = FusedLevels(weights, plan) if tap is untouched else TappedLevels(weights, plan, tap)
        for n in range(self.levels):
            x = levels.forward(x, n, memories[n], start)
        return x

    def _weights(self) -> Weights:
        return Weights(self.encoder, self.encoder_v, self.decoder.view(self.heads, -1, self.decoder.shape[1]))

    def _plan(self, batch: int, length: int) -> Plan:
        device, own = self.encoder.device.type, self.encoder.dtype
        rotation = Rotation(self.attn.freqs.flatten(), min(length, self.context), own)
        dropout = None
        if self.training and self.dropout:
            shape = (self.levels, len(groups(batch, length, self.context)), len(spans(length, self.context)), self.heads)
            dropout = Dropout(self.dropout, shape)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own
        return Plan(self.levels, self.heads, self.context, dtype, rotation, dropout)
