"""How an optimizer and its learning rate are set, wherever something is trained."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.study.base import Count, Fraction, Natural, NonNegative, Number, Positive, Share, Spec

Beta = Annotated[float, Number, Field(ge=0, lt=1)]
Hold = Annotated[float, Number, Field(ge=0, lt=1)]


Shape = Literal["constant", "linear", "cosine", "one-cycle", "plateau"]


class Schedule(Spec):
    """The learning rate over a run, as a multiple of `lr`."""

    shape: Shape = "cosine"
    """`linear` and `cosine` fall from `lr` to `final` of it; `one-cycle` is PyTorch's OneCycleLR with `lr` as its peak; `plateau`
    is its ReduceLROnPlateau on the validation loss."""
    warmup: Natural = 0
    """Steps of linear rise at the start (all but one-cycle); a quarter of the run where that is less."""
    hold: Hold = 0.0
    """Share of the run after the warm-up in which `lr` is held before it falls (linear, cosine)."""
    final: Fraction = 0.0
    """Share of `lr` that the fall ends at, one step after the last (linear, cosine)."""
    rise: Share = 0.3
    """Share of the run that rises to the peak (one-cycle)."""
    factor: Annotated[float, Number, Field(gt=0, lt=1)] = 0.5
    """What the learning rate is multiplied with when the loss no longer falls (plateau)."""
    patience: Natural = 2
    """Measurements without a new lowest loss that are borne before that (plateau)."""


class Optimizer(Spec):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), fused."""

    lr: Positive = 1e-3
    """Learning rate at the top of its schedule."""
    schedule: Schedule = Schedule()
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Adam's betas; a one-cycle schedule moves the first one itself, from 0.95 to 0.85 and back."""
    weight_decay: NonNegative = 0.0
    decay: Literal["matrices", "all"] = "matrices"
    """What weight decay applies to: weight matrices alone, or biases and norms as well."""
    clip: Positive | None = None
    """Largest norm of the gradient; larger ones are scaled down to it."""
    batch: Count = 256
    """Rows (tables, activations) or sequences (tokens) in a step."""
