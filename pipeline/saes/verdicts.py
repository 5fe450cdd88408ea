"""What is wrong with a run of training an SAE, by the rows of its curve."""

from math import isfinite

from torch import nn

from pipeline.study.sae import SAE as Spec

EARLY = 1 / 3
"""Share of the run after which it is said for the first time that L0 did not fall."""
_FALLEN = 0.95
"""L0 that is not below this share of what it was in the first step has not fallen."""
_MISSED = 0.25
"""Share of the L0 that is asked for by which the last one may be off."""
_WORSE = 2.0
"""Error, as a share of the variance, above which a run is wrong whose error grows or that ends: that of the mean is 1."""
_GROWN = 1.1
"""How many times that of the point before is more than chance."""


def fault(curve: list[dict[str, float]], last: bool, sae: nn.Module) -> str | None:
    """Whether a run has diverged, by its curve; `last`: at its end. Adam's steps do not grow with the gradient, so that most that diverge
    stay finite."""
    row, error = curve[-1], 1 - curve[-1]["fve"]
    if not isfinite(row["loss"]):
        return f"the loss is {row['loss']}"
    if error > _WORSE and (last or (len(curve) > 1 and error > _GROWN * (1 - curve[-2]["fve"]))):
        return f"the error is {error:.3g} times the variance"
    return None if all(p.isfinite().all() for p in sae.parameters()) else "the weights are not finite"


def unmoved(spec: Spec, l0: float, first_l0: float) -> str | None:
    """Whether a penalty has left L0 where it was, or higher: what was meant to be swept is not (the complaint of SAELens' issue 494)."""
    if spec.wanted_l0() is not None or not spec.penalised() or l0 < _FALLEN * first_l0:
        return None
    return f"L0 did not fall under the sparsity penalty: {first_l0:.4g} at the first step, {l0:.4g} now"


def at_the_end(spec: Spec, row: dict[str, float], l0: float, fve: float, first_l0: float) -> tuple[str, str] | None:
    """What is wrong with a finished run, and what may help. `row` is the last of its curve, `l0` and `fve` are of the SAE as it is after
    training."""
    wanted = spec.wanted_l0()
    if not row["l0"] or not l0:
        return "L0 is 0 at the end: no latent is active", "lower the penalty, thresholds or learning rate"
    if wanted is not None and abs(l0 - wanted) > _MISSED * wanted:
        return f"L0 is {l0:.4g} at the end, and {wanted:g} was asked for", "train longer, change the learning rate"
    if fve < 0:
        return f"FVE is {fve:.3g} at the end: the mean would reconstruct better", "lower the learning rate, train longer"
    told = unmoved(spec, row["l0"], first_l0)
    return None if told is None else (told, "raise the penalty, train longer")
