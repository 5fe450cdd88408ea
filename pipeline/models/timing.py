"""How fast a training run goes. Times are never twice the same, so they stand apart from the curve and outside every hash."""

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from pipeline.models.loss import Loss
from pipeline.training.device import autocast


class Clock:
    """Time that steps take, measuring left out."""

    def __init__(self, rows: list[dict[str, float]], device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.begun = time.perf_counter()
        self.computes: list[float] = []
        """Seconds of forward and backward of steps since the last row, and of those steps as a whole."""
        self.steps: list[float] = []

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, passed: float = 0.0) -> None:
        """Steps begin, or go on after a measurement; `passed` seconds of them were before an interruption."""
        self.begun = self._now() - passed

    def since(self) -> float:
        """Seconds since `start`."""
        return self._now() - self.begun

    def computed(self, begun: float) -> None:
        """Forward and backward that began at `begun` are done."""
        self.computes.append(self._now() - begun)

    def stepped(self, begun: float) -> None:
        """So is the whole step."""
        self.steps.append(self._now() - begun)

    def measured(self, step: int, positions: int) -> None:
        """A row at `step`; `positions` went through the model since the last row."""
        passed = self.since()
        self.seconds += passed
        self.rows.append({"step": step, "seconds": self.seconds, "positions_per_second": positions / passed if passed else 0.0})

    def share(self, plain: float) -> None:
        """The objectives' share of a step, whose forward and backward take `plain` seconds without them."""
        self.rows[-1]["objectives_share"] = max(0.0, (median(self.computes) - plain) / median(self.steps))
        self.computes, self.steps = [], []


def without_objectives(loss: Loss, parts: Sequence[tuple[Tensor, Tensor]], device: torch.device, precision: str) -> float:
    """Seconds that forward and backward of a batch take with no objective, in the parts and the precision it is trained in. Leaves
    no gradient and no random state behind."""
    model, shaping = loss.model, loss.model.shaping
    plain = Loss(model, (), loss.special)
    model.shaping = torch.nn.ModuleList()
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            times = []
            for _ in range(3):
                begun = time.perf_counter()
                for inputs, targets in parts:
                    with autocast(device, precision):
                        total, _ = plain(model, inputs, targets)
                    torch.autograd.grad(total, parameters)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begun)
            return median(times)
    finally:
        model.shaping = shaping
