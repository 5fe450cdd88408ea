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


def record(model: nn.Module, inputs: Tensor, hooks: Iterable[str]) -> dict[str, Tensor]:
    """Outputs of `hooks` for `inputs`. The forward ends after the last of them."""
    wanted = set(hooks)
    found: dict[str, Tensor] = {}
    passed: list[str] = []

    def tap(name: str, value: Tensor) -> Tensor:
        passed.append(name)
        if name in wanted:
            found[name] = value
            if len(found) == len(wanted):
                raise _Enough
        return value

    try:
        model(inputs, tap)
    except _Enough:
        return found
    raise UserError(f"the model has no hook {', '.join(sorted(wanted - found.keys()))}; it has {', '.join(passed)}")


def spliced(model: nn.Module, inputs: Tensor, hook: str, replace: Callable[[Tensor], Tensor]) -> Tensor:
    """The model's output when `replace(output of hook)` flows on in place of the hook's output."""
    return model(inputs, lambda name, value: replace(value) if name == hook else value)
