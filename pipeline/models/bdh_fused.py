"""BDH's levels when nothing looks inside.

- neurons, the wide tensors, live in a few buffers, for one head of one piece at a time; they never exist for a whole batch
- the backward saves narrow tensors alone and makes neurons and dropout masks again: a fifth more products, a small part of the
  memory
- queries are keys, so the gradient through the scores is one product with a symmetric matrix, not two
- gradients of the shared weights are summed over levels in place
Shapes as in bdh_parts.py.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.models.bdh_parts import Plan, Weights, attended, fired, groups, normed, piece_of, rotated, scores, written


@dataclass
class Trace:
    """What the backward of a level needs of one group: its input (R, T, D), what the decoder gave (R, T, D), and of each head what
    attention read (P, D) and its scores (R, T, T)."""

    x: Tensor
    decoded: Tensor = field(init=False)
    reads: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        return [self.x, self.decoded, *self.reads, *self.scores]

    @classmethod
    def of(cls, tensors: tuple[Tensor, ...]) -> "Trace":
        x, decoded, *heads = tensors
        trace = cls(x, heads[: len(heads) // 2], heads[len(heads) // 2 :])
        trace.decoded = decoded
        return trace


class Buffers:
    """Memory for wide tensors, taken once: fresh memory of this size costs more than the arithmetic done in it."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.found: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if name not in self.found or self.found[name].numel() < size:
            self.found[name] = self.like.new_empty(size)
        return self.found[name][:size].view(shape)


class FusedLevels:
    """The levels for one group of sequences, without autograd. `weights` are in the plan's type."""

    def __init__(self, weights: Weights, plan: Plan, group: int = 0) -> None:
        self.weights, self.plan, self.group = weights, plan, group
        self.buffers = Buffers(weights.encoder)
        self.neurons = weights.encoder.shape[2]

    def forward(
        self, x_RTD: Tensor, n: int, memories: list[Tensor | None] | None = None, start: int = 0, trace: Trace | None = None
    ) -> Tensor:
        """Level `n`. `memories`, one of each head, are those of earlier text, which ended before position `start`; they are brought
        up to date."""
        R, T, D = x_RTD.shape
        chunks = self.plan.spans(T)
        sums = [x_RTD.new_zeros(R * (span.stop - span.start), D) for span in chunks]
        for h in range(self.plan.heads):
            memory = memories[h] if memories else None
            for c, span in enumerate(chunks):
                x = piece_of(x_RTD[:, span], self.plan.dtype)
                carried = memories is not None or c + 1 < len(chunks)
                memory = self._head(x, (n, self.group, c, h), memory, carried, start + span.start, sums[c], trace)
            if memories:
                memories[h] = memory
        decoded = torch.cat([one.view(R, -1, D) for one in sums], 1)
        if trace:
            trace.decoded = decoded
        return normed(x_RTD + normed(decoded * self.plan.scale))

    def _head(
        self, x_RCD: Tensor, piece: tuple[int, ...], memory: Tensor | None, carried: bool, start: int, total: Tensor, trace: Trace | None
    ) -> Tensor | None:
        """Adds to `total` (P, D) what one head's neurons decode to; gives its memory, with this chunk in it if it is `carried`."""
        (R, C, _), h = x_RCD.shape, piece[-1]
        hidden = fired(x_RCD.flatten(0, 1), self.weights.encoder[h], self.buffers("x", R * C, self.neurons))
        q = rotated(hidden.view(R, C, -1), self.plan.rotation.at(start, C), self.buffers("y", R, C, self.neurons))
        products = scores(q)
        read = attended(q, x_RCD, products, memory)
        if carried:
            memory = written(q, x_RCD, memory)
        if trace:
            trace.reads.append(read)
            trace.scores.append(products)
        hidden.mul_(y := self._answer(read, h))
        if self.plan.dropout:
            hidden.mul_(self.plan.dropout.kept(piece, y, y))
        add_product(total, hidden, self.weights.decoder[h])
        return memory

    def _answer(self, read_PD: Tensor, h: int) -> Tensor:
        """y_sparse: what a head's neurons (P, N) make of what attention read."""
        return fired(normed(read_PD).to(self.plan.dtype), self.weights.encoder_v[h], self.buffers("y", len(read_PD), self.neurons))

    def backward(self, grad_RTD: Tensor, n: int, trace: Trace, sums: Weights) -> Tensor:
        """Gradient of level `n`'s input from that of its output; adds those of the weights to `sums`. One chunk only."""
        scaled = trace.decoded * self.plan.scale
        grad_x = norm_backward(grad_RTD, trace.x + normed(scaled))
        grad_decoded = (norm_backward(grad_x, scaled) * self.plan.scale).to(self.plan.dtype).flatten(0, 1)
        for h in range(self.plan.heads):
            self._head_backward(grad_x, grad_decoded, (n, self.group, 0, h), trace, Weights(*(one[h] for one in sums)))
        return grad_x

    def _head_backward(self, grad_x: Tensor, grad_decoded: Tensor, piece: tuple[int, ...], trace: Trace, sums: Weights) -> None:
        """Adds one head's share of the gradients, to `grad_x` (R, T, D) and, of its weights, to `sums`."""
        h, wide = piece[-1], (len(grad_decoded), self.neurons)
        encoder, encoder_v, decoder = (one[h] for one in self.weights)
        x = piece_of(trace.x, self.plan.dtype)
        hidden = fired(x.flatten(0, 1), encoder, self.buffers("x", *wide))
        y, product = self._answer(trace.reads[h], h), self.buffers("product", *wide)
        if self.plan.dropout:
            y.mul_(self.plan.dropout.kept(piece, y, product))

        add_product(sums.decoder, torch.mul(hidden, y, out=product).T, grad_decoded)
        grad_hidden = torch.mm(grad_decoded, decoder.T, out=self.buffers("grad", *wide))
        grad_y = relu_backward(torch.mul(grad_hidden, hidden, out=product), y)
        grad_hidden.mul_(y)

        add_product(sums.encoder_v, normed(trace.reads[h]).to(self.plan.dtype).T, grad_y)
        grad_read = norm_backward((grad_y @ encoder_v.T).to(grad_x.dtype), trace.reads[h]).to(self.plan.dtype).view(x.shape)

        grad_x += torch.bmm(trace.scores[h].mT, grad_read)
        grad_scores = torch.bmm(grad_read, x.mT).tril_(-1)
        rotor = self.plan.rotation.at(0, x.shape[1])
        q = rotated(hidden.view(*x.shape[:2], -1), rotor, product.view(*x.shape[:2], -1))
        grad_q = torch.bmm(grad_scores + grad_scores.mT, q, out=y.view(q.shape))
        grad_hidden += rotated(grad_q, rotor.conj(), grad_q).flatten(0, 1)
        relu_backward(grad_hidden, hidden)

        add_product(sums.encoder, x.flatten(0, 1).T, grad_hidden)
        add_product(grad_x.view(len(grad_decoded), -1), grad_hidden, encoder.T)


class _Differentiable(torch.autograd.Function):
    """All levels for one group of sequences no longer than a chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, encoder: Tensor, encoder_v: Tensor, decoder: Tensor, plan: Plan, group: int) -> Tensor:
        levels, saved = FusedLevels(Weights(encoder, encoder_v, decoder).to(plan.dtype), plan, group), []
        for n in range(plan.levels):
            trace = Trace(x)
            x = levels.forward(x, n, trace=trace)
            saved += trace.tensors()
        ctx.save_for_backward(encoder, encoder_v, decoder, *saved)
        ctx.plan, ctx.group = plan, group
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan, saved = ctx.plan, ctx.saved_tensors
        weights, size = Weights(*saved[:3]), (len(saved) - 3) // plan.levels
        sums = Weights(*(torch.zeros_like(one) for one in weights))
        levels = FusedLevels(weights.to(plan.dtype), plan, ctx.group)
        for n in reversed(range(plan.levels)):
            grad = levels.backward(grad, n, Trace.of(saved[3 + n * size : 3 + (n + 1) * size]), sums)
        return grad, *sums, None, None


def fused(x_BTD: Tensor, weights: Weights, plan: Plan, differentiable: bool) -> Tensor:
    """The residual stream after all levels; when `differentiable`, T is at most the plan's context."""
    parts = groups(len(x_BTD), x_BTD.shape[1], plan.context)
    if differentiable:
        return torch.cat([_Differentiable.apply(x_BTD[some], *weights, plan, g) for g, some in enumerate(parts)])
    weights, found = weights.to(plan.dtype), []
    for g, some in enumerate(parts):
        levels, x = FusedLevels(weights, plan, g), x_BTD[some]
        for n in range(plan.levels):
            x = levels.forward(x, n)
        found.append(x)
    return torch.cat(found)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where the factors may be of a shorter type than the sum."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def relu_backward(grad: Tensor, output: Tensor) -> Tensor:
    """`grad`, set to zero in place where ReLU gave zero."""
    return torch.ops.aten.threshold_backward.grad_input(grad, output, 0.0, grad_input=grad)


def norm_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of `x` from that of `normed(x)`."""
    shape = x.shape[-1:]
    _, mean, scale = torch.native_layer_norm(x, shape, None, None, 1e-5)
    return torch.ops.aten.native_layer_norm_backward(grad.contiguous(), x, shape, mean, scale, None, None, [True, False, False])[0]
