"""Losses of a model on a split, and what its hidden units do on a fixed pool of tokens."""

from collections.abc import Iterator, Mapping
from math import exp
from typing import Any

import torch
from torch import Tensor

from pipeline.models.base import Network
from pipeline.models.examples import Examples, TableExamples, TokenExamples
from pipeline.models.hooks import record
from pipeline.study.language import Language, Pool


@torch.no_grad()
def measure(model: Network, split: Examples, size: int, sequences: int | None = None) -> dict[str, float]:
    """Mean loss over all positions of a split (of its first `sequences`), and for tables the share of predictions that round
    to the target. `size` sequences go through the model at a time."""
    model.eval()
    device = next(model.parameters()).device
    total, right, count = 0.0, 0, 0
    for batch in split.batches(size):
        if sequences is not None and batch.sequences.start >= sequences:
            break
        targets = batch.targets.to(device)
        output = model(batch.inputs.to(device))
        total += model.losses(output, targets).double().sum().item()
        count += targets.numel()
        if isinstance(split, TableExamples):
            right += int((output.round() == targets).sum())
    found = {"loss": total / count, "positions": count}
    if isinstance(split, TableExamples):
        return {**found, "rounded_accuracy": right / count}
    return {**found, "perplexity": exp(min(found["loss"], 20.0))}


class Units:
    """Hidden units of each block on the first `pool.tokens` tokens of a split that are not special.

    sparsity: share of (token, unit) pairs at which the unit is silent, |a| < inactive_below (a = 0 where that is 0);
    rare, never: share of units that are not silent at less than 1 % of the tokens, at none;
    polysemanticity: mean over units of the entropy, in nats, of their mass |a| over token types (training-time-interpretability
    suite). It grows with the pool, so that only values of one pool compare.
    """

    def __init__(self, split: TokenExamples, blocks: int, hooks: tuple[str, str], pool: Pool, size: int) -> None:
        self.split, self.blocks, self.hooks, self.pool, self.size = split, blocks, hooks, pool, size
        seen = torch.cat([inputs[keep] for inputs, keep in self._batches()])
        self.tokens = len(seen)
        self.types = seen.unique()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the pool (B, T), and which of their tokens belong to it."""
        left = self.pool.tokens
        for batch in self.split.batches(self.size):
            flat = torch.isin(batch.inputs.flatten(), self.split.special, invert=True)
            keep = flat & (flat.cumsum(0) <= left)
            left -= int(keep.sum())
            yield batch.inputs, keep.view(batch.inputs.shape)
            if not left:
                return

    @torch.no_grad()
    def measure(self, model: Network) -> dict[str, list[float]]:
        """Each quantity by block."""
        model.eval()
        device = next(model.parameters()).device
        sums = [_Sums(len(self.types), self.pool.inactive_below) for _ in range(self.blocks)]
        names = [tuple(f"blocks.{n}.{hook}" for hook in self.hooks) for n in range(self.blocks)]
        for inputs, keep in self._batches():
            found = record(model, inputs.to(device), {name for pair in names for name in pair})
            types = torch.searchsorted(self.types, inputs[keep]).to(device)
            for one, (hidden, out) in zip(sums, names, strict=True):
                one.add(found[hidden][keep], found[out][keep], types)
        finished = [one.finish(self.tokens) for one in sums]
        return {name: [one[name] for one in finished] for name in finished[0]}


def watched(settings: Language, splits: Mapping[str, Examples | None]) -> Units:
    """The units of a model on its pool: tokens of the validation split, or of the train split where there is none."""
    split = splits.get("validation") or splits["train"]
    assert isinstance(split, TokenExamples)
    return Units(split, settings.layers, settings.measured, settings.pool, settings.training.batch)


def units(model: Network, settings: Language, splits: Mapping[str, Examples | None]) -> dict[str, Any]:
    """What the units of a finished model do, with the pool they were measured on."""
    found = watched(settings, splits)
    about = {"tokens": found.tokens, "types": len(found.types), "hooks": settings.measured, "inactive_below": settings.pool.inactive_below}
    return {**about, **found.measure(model)}


class _Sums:
    """Sums over the pool for one block."""

    def __init__(self, types: int, below: float) -> None:
        self.types, self.below = types, below
        self.active: Tensor | None = None
        self.mass: Tensor | None = None

    def add(self, hidden_nD: Tensor, out_nD: Tensor, types_n: Tensor) -> None:
        if self.active is None or self.mass is None:
            self.active = torch.zeros(hidden_nD.shape[1], dtype=torch.int64, device=hidden_nD.device)
            self.mass = torch.zeros(self.types, out_nD.shape[1], device=out_nD.device)
        self.active += (hidden_nD.abs() >= self.below if self.below else hidden_nD != 0).sum(0)
        self.mass.index_add_(0, types_n, out_nD.abs().float())

    def finish(self, tokens: int) -> dict[str, float]:
        assert self.active is not None and self.mass is not None
        share = self.mass.double() / self.mass.double().sum(0).clamp(min=1e-300)
        entropy = torch.special.entr(share).sum(0)
        return {
            "sparsity": 1 - self.active.double().mean().item() / tokens,
            "rare": (self.active < 0.01 * tokens).double().mean().item(),
            "never": (self.active == 0).double().mean().item(),
            "polysemanticity": entropy.mean().item(),
        }
