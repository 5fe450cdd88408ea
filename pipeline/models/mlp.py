"""A multilayer perceptron: linear, batch norm where named, ReLU; then a linear output. Loss: squared error.

Hook `layerN` is the output of the N-th hidden layer after its ReLU.
"""

from itertools import pairwise

from torch import Tensor, nn

from pipeline.models.base import Network
from pipeline.models.hooks import Tap
from pipeline.study.models.mlp import MLP as Spec


class Model(Network):
    """inputs (B, width) -> predictions (B,)."""

    def __init__(self, spec: Spec, facts: dict) -> None:
        super().__init__()
        widths = [facts["width"], *spec.hidden]
        self.linear = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norm = nn.ModuleDict({str(n): nn.BatchNorm1d(spec.hidden[n - 1]) for n in spec.batch_norm})
        self.output = nn.Linear(widths[-1], 1)

    def compute(self, x: Tensor, tap: Tap) -> Tensor:
        for n, linear in enumerate(self.linear, 1):
            x = linear(x)
            if str(n) in self.norm:
                x = self.norm[str(n)](x)
            x = tap(f"layer{n}", x.relu())
        return self.output(x).squeeze(-1)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Squared error of each row (B,)."""
        return (output - target).square()
