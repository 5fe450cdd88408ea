"""Where a run of training an SAE stands, but for its tensors."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """All of it is plain numbers and words, for snapshots."""

    step: int = 0
    rows: int = 0
    """Seen since the start."""
    counted: int = 0
    """Seen since the last row of the curve."""
    curve: list[dict[str, float]] = field(default_factory=list)
    first_l0: float = 0.0
    """Of the first step."""
    best_step: int = 0
    best_loss: float = float("inf")
    waited: int = 0
    """Points of the curve since the best."""
    good_step: int = 0
    """The last point of the curve at which all was finite."""
    plateau: list[float] = field(default_factory=list)
    resampled: int = 0
    """Latents that were given new directions."""
    wrong: str | None = None
    diverged: bool = False
    ended: bool = False

    @property
    def last_step(self) -> int:
        """The step whose weights the run has: of one that diverged, the last at which all was finite."""
        return self.good_step if self.diverged else self.step
