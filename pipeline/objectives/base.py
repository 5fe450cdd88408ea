"""What every training-time objective is: a term of the loss, a change of what hooks give, or both.

Shapes: n tokens drawn from a batch, D the hook's width, B sequences of T tokens.
"""

import importlib
import sys
from collections.abc import Mapping
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.artifacts.seeds import derive
from pipeline.models.base import Network
from pipeline.models.hooks import Tap
from pipeline.study.language import Language
from pipeline.study.names import module_name
from pipeline.study.objective import Objective as Spec
from pipeline.study.objective import OnTokens, Weighted

S = TypeVar("S", bound=Spec)


class Objective(nn.Module, Generic[S]):
    """One objective of a model, of settings S. What is `shaping` becomes part of the model: its parameters are saved with the weights, and
    its `forward` acts at inference as well."""

    shaping = False
    reads = True
    """Whether `term` needs the values of its hooks."""

    def __init__(self, spec: S, hooks: list[str], width: int) -> None:
        """`hooks` are those it acts on, each `width` wide."""
        super().__init__()
        self.hooks = hooks
        """What `term` reads: hooks of the model, or what `forward` shows a tap besides."""
        self.weight = spec.weight if isinstance(spec, Weighted) else 0.0
        self.tokens = spec.tokens if isinstance(spec, OnTokens) else sys.maxsize

    def forward(self, name: str, value: Tensor, tap: Tap) -> Tensor:
        """What flows on where a hook gave `value` (B, T, D). Only of shaping objectives, and called for every hook. What is
        found on the way may be shown to `tap`, under a name that begins with the hook's."""
        return value

    def term(self, values: Mapping[str, Tensor], ids_n: Tensor) -> Tensor | None:
        """The term of the loss before its weight (), a mean over its hooks; None where the objective has none.

        `values` has (n, D) of each of `hooks`, where it reads them; `ids_n` are the tokens they belong to. Computed in float32 at
        least, also inside autocast. A batch without a token adds nothing.
        """
        if not len(ids_n):
            return torch.zeros((), device=ids_n.device)
        with torch.autocast(ids_n.device.type, enabled=False):
            terms = [self.at_hook(hook, at_least_float32(values[hook]), ids_n) for hook in self.hooks]
            return torch.stack(terms).mean()

    def at_hook(self, hook: str, value_nD: Tensor, ids_n: Tensor) -> Tensor:
        """The term of one hook ()."""
        raise NotImplementedError

    def begin_step(self, share: float) -> None:
        """Called before each step with the share of the run that is done, 0 to just under 1."""

    def end_step(self) -> None:
        """Called after each step of the model's optimizer."""

    def tracked(self) -> dict[str, float]:
        """Numbers of its own for the training curve, such as the share of open gates."""
        return {}

    def resume_state(self) -> dict[str, Tensor]:
        """What it has learned or counted and the model does not hold, so that an interrupted run goes on. Asked between steps."""
        return {} if self.shaping else dict(self.state_dict())

    def resume(self, state: dict[str, Tensor]) -> None:
        """Goes on from what `resume_state` gave."""
        if not self.shaping:
            self.load_state_dict(state)


def at_least_float32(value: Tensor) -> Tensor:
    """`value` in its own precision, or float32 where that is less."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def shaping(settings: Language) -> list[Objective]:
    """The objectives that become part of a model, in the study's order, freshly initialised from the model's seed."""
    return [_made(settings, n) for n, one in enumerate(settings.objectives) if _class(one).shaping]


def objectives(settings: Language, model: Network) -> list[Objective]:
    """All objectives of a model in the study's order: the shaping ones as they stand in `model`, the others freshly initialised
    from the model's seed, on its device and in its precision."""
    parts = iter(cast("list[Objective]", model.shaping))
    like = next(model.parameters())
    return [next(parts) if _class(one).shaping else _made(settings, n).to(like) for n, one in enumerate(settings.objectives)]


def _class(spec: Spec) -> type[Objective]:
    return importlib.import_module(f"pipeline.objectives.{module_name(spec.objective)}").Objective


def _made(settings: Language, number: int) -> Objective:
    spec = settings.objectives[number]
    layers = range(settings.layers) if spec.layers is None else spec.layers
    hooks = [f"blocks.{n}.{spec.acts_on()}" for n in layers]
    with torch.random.fork_rng():
        torch.manual_seed(derive(settings.seed, "model", "objective", number))
        return _class(spec)(spec, hooks, settings.hooks()[hooks[0]])
