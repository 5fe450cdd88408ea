"""Learning rate (and first beta) at each step of a run."""

from math import cos, pi

from pipeline.study.training import Optimizer, Schedule

_START, _END = 25.0, 1e4  # OneCycleLR's div_factor and final_div_factor
_LOW, _HIGH = 0.85, 0.95  # its base_momentum and max_momentum


def at(spec: Optimizer, step: int, steps: int) -> tuple[float, float]:
    """Learning rate and beta1 at step 0 .. steps - 1."""
    shape = spec.schedule
    if shape.shape == "one-cycle":
        return _one_cycle(spec.lr, shape.rise, step, steps)
    warmup = min(shape.warmup, steps // 4)
    if step < warmup:
        return spec.lr * (step + 1) / warmup, spec.betas[0]
    past = max(0.0, ((step - warmup) / (steps - warmup) - shape.hold) / (1 - shape.hold))
    fall = {"constant": 1.0, "plateau": 1.0, "linear": 1 - past, "cosine": (1 + cos(pi * past)) / 2}[shape.shape]
    final = 1.0 if shape.shape in ("constant", "plateau") else shape.final
    return spec.lr * (final + (1 - final) * fall), spec.betas[0]


class Plateau:
    """The factor of a `plateau` schedule; 1 of any other. As torch.optim.lr_scheduler.ReduceLROnPlateau with its defaults."""

    _BETTER = 1 - 1e-4  # its relative threshold

    def __init__(self, spec: Schedule) -> None:
        self.spec, self.factor, self.best, self.waited = spec, 1.0, float("inf"), 0

    def measured(self, loss: float) -> None:
        """Takes in a measured loss."""
        if self.spec.shape != "plateau":
            return
        better = loss < self.best * self._BETTER
        self.best, self.waited = (loss, 0) if better else (self.best, self.waited + 1)
        if self.waited > self.spec.patience:
            self.factor, self.waited = self.factor * self.spec.factor, 0

    def state(self) -> list[float]:
        """What `restore` needs to go on from here."""
        return [self.factor, self.best, self.waited]

    def restore(self, state: list[float]) -> None:
        """Goes on from `state`."""
        self.factor, self.best, self.waited = state[0], state[1], int(state[2])


def _one_cycle(peak: float, rise: float, step: int, steps: int) -> tuple[float, float]:
    """As torch.optim.lr_scheduler.OneCycleLR with its defaults (Smith & Topin 2017, arXiv 1708.07120)."""
    top = rise * steps - 1
    start, end = peak / _START, peak / _START / _END
    if step <= top:
        part = step / top if top else 1.0
        return _blend(start, peak, part), _blend(_HIGH, _LOW, part)
    part = (step - top) / (steps - 1 - top)
    return _blend(peak, end, part), _blend(_LOW, _HIGH, part)


def _blend(a: float, b: float, part: float) -> float:
    return b + (a - b) / 2 * (1 + cos(pi * part))
