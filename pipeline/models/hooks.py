"""Recording and replacing what flows through a model.

A model's forward takes a `tap`: a function `(hook name, tensor) -> tensor` that it calls at each hook and whose result flows
on. That is all there is: no registered callbacks, nothing left behind when something raises.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from pipeline.artifacts.errors import UserError

Tap = Callable[[str, Tensor], Tensor]


def untouched(name: str, value: Tensor) -> Tensor:
    """The tap of a plain forward."""
    return value


class _Enough(Exception):
    """All hooks are recorded; the rest of the forward is not needed."""


class Watching:
    """A tap that says which hooks it is about, so that a model need not make the others."""

    def __init__(self, hooks: Iterable[str], see: Tap) -> None:
        self.hooks, self.see = frozenset(hooks), see

    def __call__(self, name: str, value: Tensor) -> Tensor:
        return self.see(name, value) if name in self.hooks else value


def watches(tap: Tap, hook: str) -> bool:
    """Whether a tap has to see a hook: not so when it has said that it is about others."""
    return not isinstance(tap, Watching) or hook in tap.hooks


def record(model: nn.Module, inputs: Tensor, hooks: Iterable[str]) -> dict[str, Tensor]:
    """Outputs of `hooks` for `inputs`. The forward ends after the last of them. Raises UserError when the model lacks one."""
    wanted = set(hooks)
    found: dict[str, Tensor] = {}

    def see(name: str, value: Tensor) -> Tensor:
        found[name] = value
        if len(found) == len(wanted):
            raise _Enough
        return value

    try:
        model(inputs, Watching(wanted, see))
    except _Enough:
        return found
    there = ", ".join(_all(model, inputs))
    raise UserError(f"the model has no hook {', '.join(sorted(wanted - found.keys()))}; it has {there}")


def _all(model: nn.Module, inputs: Tensor) -> list[str]:
    """All hooks of a model, in the order in which they are passed."""
    passed: list[str] = []

    def see(name: str, value: Tensor) -> Tensor:
        passed.append(name)
        return value

    model(inputs, see)
    return passed


def spliced(model: nn.Module, inputs: Tensor, hook: str, replace: Callable[[Tensor], Tensor]) -> Tensor:
    """The model's output when `replace(output of hook)` flows on in place of the hook's output."""
    return model(inputs, Watching([hook], lambda name, value: replace(value)))
