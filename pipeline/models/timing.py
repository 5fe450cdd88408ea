"""How fast a training run goes. Times are never twice the same, so they stand apart from the curve and outside every hash."""

import time

import torch

from pipeline.models.hooks import untouched
from pipeline.models.loss import Loss


class Clock:
    """Time that steps take, measuring left out."""

    def __init__(self, rows: list[dict[str, float]], device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.compute = self.last_step = 0.0
        """Seconds of the last step's forward and backward, and of all of it."""
        self.begun = time.perf_counter()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self) -> None:
        """Steps begin, or go on after a measurement."""
        self.begun = self._now()

    def computed(self, begun: float) -> None:
        """Forward and backward that began at `begun` are done."""
        self.compute = self._now() - begun

    def measured(self, step: int, positions: int, begun: float) -> None:
        """A row at `step`, whose last step began at `begun`; `positions` went through the model since the last row."""
        now = self._now()
        passed, self.last_step = now - self.begun, now - begun
        self.seconds += passed
        self.rows.append({"step": step, "seconds": self.seconds, "positions_per_second": positions / passed if passed else 0.0})

    def share(self, plain: float) -> None:
        """The objectives' share of the step just measured, whose forward and backward take `plain` seconds without them."""
        self.rows[-1]["objectives_share"] = max(0.0, (self.compute - plain) / self.last_step)


def without_objectives(loss: Loss, inputs: torch.Tensor, targets: torch.Tensor, device: torch.device) -> float:
    """Seconds that forward and backward of a batch take with no objective. Leaves no gradient and no random state behind."""
    model, shaping = loss.model, loss.model.shaping
    plain = Loss(model, [], loss.special)
    model.shaping = torch.nn.ModuleList()
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            begun = time.perf_counter()
            total, _ = plain(lambda x, tap: model(x, untouched), inputs, targets)
            torch.autograd.grad(total, parameters)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - begun
    finally:
        model.shaping = shaping
