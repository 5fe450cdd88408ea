"""What every model is: a forward that takes a tap, and the loss of each position."""

from torch import Tensor, nn

from pipeline.models.hooks import Tap, untouched


class Network(nn.Module):
    """A model: inputs (B, ...) -> output; `tap` sees each hook's value and says what flows on (hooks.py)."""

    def forward(self, inputs: Tensor, tap: Tap = untouched) -> Tensor:
        raise NotImplementedError

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of each scored position, not averaged."""
        raise NotImplementedError
