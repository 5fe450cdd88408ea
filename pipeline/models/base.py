"""What every model is: a forward that takes a tap, and the loss of each position."""

from torch import Tensor, nn

from pipeline.models.hooks import Tap, untouched


class Network(nn.Module):
    """A model: inputs (B, ...) -> output; `tap` sees each hook's value and says what flows on (hooks.py).

    An architecture writes `compute`. `shaping` holds what training-time objectives have made part of the model (objectives/):
    it acts on a hook's value first, in training and ever after, so that a tap sees what flows on.
    """

    scored = True
    """Whether `losses` means something; not so for an encoder without a head."""

    def __init__(self) -> None:
        super().__init__()
        self.shaping = nn.ModuleList()

    def compute(self, inputs: Tensor, tap: Tap) -> Tensor:
        """The forward of the architecture."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, tap: Tap = untouched) -> Tensor:
        return self.compute(inputs, self._shaped(tap) if self.shaping else tap)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of each scored position, not averaged."""
        raise NotImplementedError

    def _shaped(self, tap: Tap) -> Tap:
        def shaped(name: str, value: Tensor) -> Tensor:
            for one in self.shaping:
                value = one(name, value, tap)
            return tap(name, value)

        return shaped
