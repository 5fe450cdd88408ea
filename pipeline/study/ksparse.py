"""What architectures share that keep a number of latents."""

from pipeline.study.base import Count, Fraction, NonNegative
from pipeline.study.sae import SAE


class KSparse(SAE):
    """A number of latents is kept: of each row, or of a batch."""

    k: Count = 32
    """Latents that may fire for one input; of a batch, on average."""
    k_start: Count | None = None
    """Where k begins, if it is annealed; not below k."""
    k_anneal: Fraction = 0.1
    """Share of the run in which k falls from `k_start`, linearly."""
    auxk: NonNegative = 1 / 32
    """Weight of the loss by which dead latents learn (AuxK, Gao et al. 2024)."""

    def k_at(self, share: float) -> int | None:
        if self.k_start is None or share >= self.k_anneal:
            return self.k
        return round(self.k_start + (self.k - self.k_start) * share / self.k_anneal)

    def settled(self) -> float:
        return self.k_anneal if self.k_start is not None else 0.0

    def idle(self) -> dict[str, str]:
        found = super().idle()
        if self.k_start is None and "k_anneal" in self.model_fields_set:
            found["k_anneal"] = "has no effect without `k_start`, from which k would fall; give it, or leave this out"
        if self.k_start is not None and not self.k_anneal:
            found["k_start"] = "has no effect with `k_anneal: 0`, the share of the run in which k falls; leave it out, or give a share"
        return found

    def problems(self, width: int) -> list[str]:
        latents = self.latents or 8 * width
        over = [name for name in ("k", "k_start") if (getattr(self, name) or 0) > latents]
        problems = [f"{name}: {getattr(self, name)} is more than the {latents} latents" for name in over]
        if self.k_start is not None and self.k_start < self.k:
            problems.append(f"k_start: {self.k_start} is less than k, {self.k}, to which it is to fall")
        return problems
