"""BDH's levels with their hooks: plain autograd, and each hook's value is there for the whole batch at once.

It computes in the same pieces as bdh_fused.py, so that what a tap sees is what flows without one. Shapes as in bdh_parts.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.models.bdh_parts import Plan, Weights, attended, fired, groups, normed, piece_of, rotated, scores, written
from pipeline.models.hooks import Tap


class TappedLevels:
    """The levels, each hook of which exists for the whole batch and goes through the tap. `weights` are in the plan's type."""

    def __init__(self, weights: Weights, plan: Plan, tap: Tap) -> None:
        self.weights, self.plan, self.tap = weights, plan, tap

    def forward(self, x_BTD: Tensor, n: int, memories: list[Tensor | None] | None = None, start: int = 0) -> Tensor:
        """Level `n`. `memories`, one of each head, are those of earlier text, which ended before position `start`; they are brought
        up to date."""

        def tapped(hook: str, value: Tensor) -> Tensor:
            return self.tap(f"blocks.{n}.{hook}", value)

        encoder, encoder_v, _ = self.weights
        B, T, _ = x_BTD.shape
        x_BTM = tapped(
            "x_sparse", self._whole(B, T, lambda g, c, h: fired(piece_of(x_BTD[g, c], self.plan.dtype).flatten(0, 1), encoder[h]))
        )
        reads = self._reads(x_BTM, x_BTD, memories, start)
        y_BTK = tapped("y_kv", self._whole(B, T, lambda g, c, h: normed(reads[g.start, c.start, h])))

        def product(g: slice, c: slice, h: int) -> Tensor:
            return self._part(x_BTM, g, c, h) * fired(self._part(y_BTK, g, c, h), encoder_v[h])

        xy_BTM = tapped("xy_sparse", self._whole(B, T, product))
        return tapped("resid_post", normed(x_BTD + normed(self._decoded(xy_BTM, x_BTD, n) * self.plan.scale)))

    def _reads(self, x_BTM: Tensor, v_BTD: Tensor, memories: list[Tensor | None] | None, start: int) -> dict[tuple, Tensor]:
        """What attention reads, (P, D), by first sequence, first token and head of the piece."""
        B, T, _ = v_BTD.shape
        found, chunks = {}, self.plan.spans(T)
        for g in groups(B, T, self.plan.context):
            for h in range(self.plan.heads):
                memory = memories[h] if memories else None
                for c in chunks:
                    v = piece_of(v_BTD[g, c], self.plan.dtype)
                    hidden = self._part(x_BTM, g, c, h).view(*v.shape[:2], -1)
                    q = rotated(hidden, self.plan.rotation.at(start + c.start, v.shape[1]))
                    found[g.start, c.start, h] = attended(q, v, scores(q), memory)
                    if memories or c is not chunks[-1]:
                        memory = written(q, v, memory)
                if memories:
                    memories[h] = memory
        return found

    def _decoded(self, xy_BTM: Tensor, like_BTD: Tensor, n: int) -> Tensor:
        """What the decoder gives (B, T, D), dropout before it."""
        decoder, (B, T, D) = self.weights.decoder, like_BTD.shape
        rows = []
        for i, g in enumerate(groups(B, T, self.plan.context)):
            parts = []
            for j, c in enumerate(self.plan.spans(T)):
                total = like_BTD.new_zeros((g.stop - g.start) * (c.stop - c.start), D)
                for h in range(self.plan.heads):
                    hidden = self._part(xy_BTM, g, c, h)
                    if self.plan.dropout:
                        hidden = hidden * self.plan.dropout.kept((n, i, j, h), hidden)
                    same = total.dtype == hidden.dtype
                    total = torch.addmm(total, hidden, decoder[h]) if same else total + hidden @ decoder[h]
                parts.append(total.view(-1, c.stop - c.start, D))
            rows.append(torch.cat(parts, 1))
        return torch.cat(rows)

    def _whole(self, batch: int, length: int, piece: Callable[[slice, slice, int], Tensor]) -> Tensor:
        """The pieces (P, W) of all groups, chunks and heads as one tensor (B, T, H W)."""
        rows = []
        for g in groups(batch, length, self.plan.context):
            parts = []
            for c in self.plan.spans(length):
                heads = torch.cat([piece(g, c, h) for h in range(self.plan.heads)], 1)
                parts.append(heads.view(-1, c.stop - c.start, heads.shape[1]))
            rows.append(torch.cat(parts, 1))
        return torch.cat(rows)

    def _part(self, whole_BTW: Tensor, g: slice, c: slice, h: int) -> Tensor:
        """One head's columns of a piece of a hook's value, (P, W / H), in the type of the products."""
        width = whole_BTW.shape[2] // self.plan.heads
        return piece_of(whole_BTW[g, c, h * width : (h + 1) * width], self.plan.dtype).flatten(0, 1)
