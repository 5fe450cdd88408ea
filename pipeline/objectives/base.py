"""What every training-time objective is: a term of the loss, a change of what hooks give, or both.

Shapes: n tokens drawn from a batch, D the hook's width, B sequences of T tokens.
"""

import importlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.artifacts.seeds import derive
from pipeline.study.language import Language
from pipeline.study.objective import Objective as Spec


class Objective(nn.Module):
    """One objective of a model. What is `shaping` becomes part of the model: its parameters are saved with the weights, and
    its `forward` acts at inference as well."""

    shaping = False
    reads = True
    """Whether `term` needs the values of its hooks."""

    def __init__(self, spec: Spec, hooks: list[str], width: int) -> None:
        super().__init__()
        self.weight, self.tokens, self.hooks = spec.weight, spec.tokens, hooks

    def forward(self, name: str, value: Tensor) -> Tensor:
        """What flows on where a hook gave `value` (B, T, D). Only of shaping objectives, and called for every hook."""
        return value

    def term(self, values: Mapping[str, Tensor], ids_n: Tensor) -> Tensor | None:
        """The term of the loss before its weight, a mean over its hooks; None where the objective has none. `values` has
        (n, D) of each of its hooks, where it reads them; `ids_n` are the tokens they belong to."""
        return None

    def begin_step(self, share: float) -> None:
        """Called before each step with the share of the run that is done, 0 to just under 1."""

    def end_step(self) -> None:
        """Called after each step of the model's optimizer."""

    def tracked(self) -> dict[str, float]:
        """Numbers of its own for the training curve, such as the share of open gates."""
        return {}


def objectives(settings: Language) -> list[Objective]:
    """The objectives of a model in the study's order, freshly initialised from the model's seed."""
    widths = settings.hooks()
    found = []
    for number, spec in enumerate(settings.objectives):
        module = importlib.import_module(f"pipeline.objectives.{spec.objective.replace('-', '_')}")
        layers = range(settings.layers) if spec.layers is None else spec.layers
        hooks = [f"blocks.{n}.{spec.acts_on}" for n in layers]
        with torch.random.fork_rng():
            torch.manual_seed(derive(settings.seed, "model", "objective", number))
            found.append(module.Objective(spec, hooks, widths[hooks[0]]))
    return found
