"""The sections of a study that measure and show: evaluation, features, probe, report."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.study.activations import Split
from pipeline.study.base import Count, Natural, NonNegative, Number, Spec

Values = list[Annotated[float, Number]]


class Evaluation(Spec):
    """How every SAE is measured."""

    split: Split = "validation"
    """The split it is measured on."""
    active_above: NonNegative = 0.0
    """Besides L0 (latents that are not 0), count the latents above this number; both are printed with it."""
    batch: Count = 1024
    """Rows in a batch. Part of the result: another number changes floating-point sums."""
    threads: Count = 1


class Features(Spec):
    """How the latents of every SAE are described."""

    split: Split = "train"
    """The split that contexts are taken from."""
    contexts: Count = 10
    """Contexts per latent: those sequences (or rows) in which it fires most strongly, one each."""
    before: Natural = 24
    """Tokens shown before the strongest one."""
    after: Natural = 8
    """Tokens shown after it."""
    batch: Count = 1024
    """Rows in a batch, rounded to whole sequences."""
    threads: Count = 1


class Sample(Spec):
    """One row of input and what should come out."""

    input: Values
    expected: Annotated[float, Number]


class Probe(Spec):
    """Single inputs followed through a table's model and each of its SAEs."""

    samples: Annotated[list[Sample], Field(min_length=1)]
    active_above: NonNegative = 0.0
    """A latent counts as active above this number."""
    top: Count = 5
    """Strongest latents listed per sample."""


class Tracking(Spec):
    """Where the curves of models and SAEs are shown while they train, besides the logs. It decides no byte of a result; the packages come
    with `pip install 'saeflow[tracking]'`."""

    tensorboard: bool = False
    """Writes events for TensorBoard to results/<study>/logs/, in the folder of the model or SAE."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; `offline` writes to the same folder, for `wandb sync` later."""
    project: str = "saeflow"
    """Project in Weights & Biases."""


class Report(Spec):
    """What the page shows."""

    title: str | None = None
    """Its heading; the study's name when not given."""
    about: str = ""
    """A sentence or two under the heading."""
    features: Natural = 8
    """Latents shown per SAE, spread evenly over the range of densities."""
    contexts: Count = 5
    """Contexts shown per latent."""
