"""Hooks of a model whose code is not ours: PyTorch's callbacks, for the length of one forward.

What a tap sees is float32, whatever the model computes in, and is its own: nothing that happens later in the forward changes it.
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.artifacts.errors import UserError
from pipeline.models.hooks import Tap

ENTERS = "input:"


@dataclass(frozen=True)
class Place:
    """Where a hook is: what goes into a module, or what comes out of it."""

    hook: str
    module: nn.Module
    enters: bool

    def attach(self, tap: Tap) -> RemovableHandle:
        """Has `tap` called at each forward of the module until the handle is removed."""
        if not self.enters:
            return self.module.register_forward_hook(lambda module, args, output: self._after(tap, output))
        before = self._in_place if self.hook.endswith(".resid_mid") else self._before
        return self.module.register_forward_pre_hook(lambda module, args, named: before(tap, args, named), with_kwargs=True)

    def _after(self, tap: Tap, output: Any) -> Any:
        """The module's output with what flows on; None where that is what it was."""
        value = output[0] if isinstance(output, tuple) else output
        new = self._tapped(tap, value)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def _before(self, tap: Tap, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """The module's arguments with what flows on; None where that is what they were."""
        if args:
            new = self._tapped(tap, args[0])
            return None if new is None else ((new, *args[1:]), named)
        key = self._main(named)
        new = self._tapped(tap, named[key])
        return None if new is None else (args, {**named, key: new})

    def _in_place(self, tap: Tap, args: tuple, named: dict[str, Any]) -> None:
        """The stream between attention and MLP goes into a norm while the block holds on to it, to add to it later. Only by
        writing into the tensor does a replaced value reach both. The tap sees a copy, which stays as it is."""
        value = args[0] if args else named[self._main(named)]
        new = self._tapped(tap, value, copy=True)
        if new is not None:
            value.copy_(new)

    def _main(self, named: dict[str, Any]) -> str:
        tensors = [key for key, value in named.items() if isinstance(value, Tensor)]
        if not tensors:
            raise UserError(f"hook {self.hook}: no tensor goes into its module ({type(self.module).__name__})")
        return "hidden_states" if "hidden_states" in tensors else tensors[0]

    def _tapped(self, tap: Tap, value: Any, copy: bool = False) -> Tensor | None:
        if not isinstance(value, Tensor):
            what = type(value).__name__
            raise UserError(f"hook {self.hook}: its module ({type(self.module).__name__}) has a {what} there, and not a tensor")
        seen = value.to(torch.promote_types(value.dtype, torch.float32), copy=copy)
        flows = tap(self.hook, seen)
        return None if flows is seen else flows.to(value.dtype)


def places(network: nn.Module, paths: Mapping[str, str]) -> list[Place]:
    """The places of hooks given as dotted paths, `input:` before those of inputs. Raises UserError when there is no such module."""
    found = []
    for hook, path in paths.items():
        dotted = path.removeprefix(ENTERS)
        try:
            module = network.get_submodule(dotted)
        except AttributeError:
            near = difflib.get_close_matches(dotted, [name for name, _ in network.named_modules()], n=3, cutoff=0.3)
            raise UserError(f"hook {hook}: the model has no module '{dotted}'; did you mean {' or '.join(near) or 'another'}?") from None
        found.append(Place(hook, module, path.startswith(ENTERS)))
    return found


@contextmanager
def attached(where: list[Place], tap: Tap) -> Iterator[None]:
    """`tap` sees all these places while the block runs; nothing stays behind, whatever the block raises."""
    handles: list[RemovableHandle] = []
    try:
        handles += [place.attach(tap) for place in where]
        yield
    finally:
        for handle in handles:
            handle.remove()
