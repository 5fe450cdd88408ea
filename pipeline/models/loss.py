"""The loss of a training step: the model's own, and the terms of its objectives.

Terms are computed on tokens drawn from those of the batch that are not special, so that ends of documents enter no statistic.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.models.base import Network
from pipeline.models.hooks import Tap, untouched

Forward = Callable[[Tensor, Tap], Tensor]


class Loss:
    """Loss and terms of batches; `objectives` are those of pipeline.objectives, `special` the ids that are no text, `seed` that of
    the tokens drawn. Those have a generator of their own: an objective that only watches leaves dropout as it was."""

    def __init__(self, model: Network, objectives: Sequence, special: Tensor, seed: int = 0) -> None:
        self.model, self.objectives, self.special = model, objectives, special
        self.generator = torch.Generator().manual_seed(seed)
        self.read = {hook for one in objectives if one.reads for hook in one.hooks}
        kinds = [type(one).__module__.rsplit(".", 1)[1] for one in objectives]
        twice = {kind for kind in kinds if kinds.count(kind) > 1}
        self.names = [f"{kind}_{n}" if kind in twice else kind for n, kind in enumerate(kinds)]

    def __call__(self, forward: Forward, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and its parts by name: `train_loss`, and each objective's weighted term."""
        found: dict[str, Tensor] = {}

        def tap(name: str, value: Tensor) -> Tensor:
            if name in self.read:
                found[name] = value
            return value

        output = forward(inputs, tap if self.read else untouched)
        total = own = self.model.losses(output, targets).mean()
        parts = {"train_loss": own.detach()}
        if not self.objectives:
            return total, parts
        rows, ids = self._rows(inputs), inputs.flatten()
        flat = {hook: value.flatten(0, -2) for hook, value in found.items()}
        for name, one in zip(self.names, self.objectives, strict=True):
            drawn = rows[: one.tokens]
            values = {hook: flat[hook][drawn] for hook in one.hooks} if one.reads else {}
            term = one.term(values, ids[drawn])
            if term is not None:
                total = total + one.weight * term
                parts[name] = one.weight * term.detach()
        return total, parts

    def _rows(self, inputs: Tensor) -> Tensor:
        """Positions of a batch whose token is no special one, in random order where some have to be left out."""
        rows = torch.isin(inputs.flatten(), self.special.to(inputs.device), invert=True).nonzero().squeeze(1)
        if len(rows) <= min(one.tokens for one in self.objectives):
            return rows
        return rows[torch.randperm(len(rows), generator=self.generator).to(rows.device)]
