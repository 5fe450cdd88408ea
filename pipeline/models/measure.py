"""Losses of a model on a split, and what its hidden units do on a fixed pool of tokens."""

from collections.abc import Iterator, Mapping
from math import exp
from typing import Any

import torch
from torch import Tensor

from pipeline.models.base import Network
from pipeline.models.examples import Examples, TableExamples, TokenExamples
from pipeline.study.language import Language, Pool


@torch.no_grad()
def measure(model: Network, split: Examples, size: int, sequences: int | None = None) -> dict[str, float]:
    """Mean loss over all positions of a split, or of so many `sequences` spread over it where it is text and has more; for tables
    also the share of predictions that round to the target. `size` sequences go through the model at a time."""
    model.eval()
    weight = next(model.parameters())
    total, right, count = 0.0, 0, 0
    for inputs, targets in _chosen(split, size, sequences):
        targets = targets.to(weight.device)
        output = model(inputs.to(weight if inputs.is_floating_point() else weight.device))
        total += model.losses(output, targets).double().sum().item()
        count += targets.numel()
        if isinstance(split, TableExamples):
            right += int((output.round() == targets).sum())
    found = {"loss": total / count, "positions": count}
    if isinstance(split, TableExamples):
        return {**found, "rounded_accuracy": right / count}
    return {**found, "perplexity": exp(min(found["loss"], 20.0))}


def _chosen(split: Examples, size: int, sequences: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(split, TokenExamples) and sequences is not None and sequences < len(split):
        return split.spread(sequences, size)
    return ((batch.inputs, batch.targets) for batch in split.batches(size))


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
        """Each quantity by block. Sums are taken as values pass, so that no batch of wide units is held for two blocks."""
        model.eval()
        device = next(model.parameters()).device
        active, mass = _Active(self.pool.inactive_below), _Mass(len(self.types))
        hidden, out = ({f"blocks.{n}.{hook}": n for n in range(self.blocks)} for hook in self.hooks)
        for inputs, keep in self._batches():
            types = torch.searchsorted(self.types, inputs[keep]).to(device)

            def tap(name: str, value: Tensor, keep: Tensor = keep, types: Tensor = types) -> Tensor:
                if name in hidden:
                    active.add(hidden[name], value[keep])
                if name in out:
                    mass.add(out[name], value[keep], types)
                return value

            model(inputs.to(device), tap)
        shares = [active.of[n].double() / self.tokens for n in range(self.blocks)]
        return {
            "sparsity": [1 - share.mean().item() for share in shares],
            "rare": [(share < 0.01).double().mean().item() for share in shares],
            "never": [(share == 0).double().mean().item() for share in shares],
            "polysemanticity": [mass.entropy(n) for n in range(self.blocks)],
        }


class _Active:
    """How often each unit is not silent, by block."""

    def __init__(self, below: float) -> None:
        self.below = below
        self.of: dict[int, Tensor] = {}

    def add(self, block: int, value_nD: Tensor) -> None:
        found = (value_nD.abs() >= self.below if self.below else value_nD != 0).sum(0)
        self.of[block] = self.of[block] + found if block in self.of else found


class _Mass:
    """Sums of |a| of each unit by token type, by block."""

    def __init__(self, types: int) -> None:
        self.types = types
        self.of: dict[int, Tensor] = {}

    def add(self, block: int, value_nD: Tensor, types_n: Tensor) -> None:
        if block not in self.of:
            self.of[block] = torch.zeros(self.types, value_nD.shape[1], device=value_nD.device)
        self.of[block].index_add_(0, types_n, value_nD.abs().float())

    def entropy(self, block: int) -> float:
        """Mean over units of the entropy of their mass, in nats."""
        mass = self.of[block].double()
        return torch.special.entr(mass / mass.sum(0).clamp(min=1e-300)).sum(0).mean().item()


def watched(settings: Language, splits: Mapping[str, Examples | None]) -> Units:
    """The units of a model on its pool: tokens of the validation split, or of the train split where there is none."""
    split = splits.get("validation") or splits["train"]
    assert isinstance(split, TokenExamples)
    return Units(split, settings.layers, settings.measured, settings.pool, settings.scoring_batch())


def units(model: Network, settings: Language, splits: Mapping[str, Examples | None]) -> dict[str, Any]:
    """What the units of a finished model do, with the pool they were measured on."""
    found = watched(settings, splits)
    about = {"tokens": found.tokens, "types": len(found.types), "hooks": settings.measured, "inactive_below": settings.pool.inactive_below}
    return {**about, **found.measure(model)}
