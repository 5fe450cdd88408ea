"""Baby Dragon Hatchling."""

from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, model_validator

from pipeline.study.base import Count, NonNegative, Positive, Share
from pipeline.study.language import Language, LanguageTraining, Pool, Sample
from pipeline.study.training import Beta, Schedule, Shape

HOOKS = {
    "x_sparse": "what each head's neurons read from the stream, after ReLU: attention's queries and keys before they are rotated",
    "y_kv": "what attention reads out of its memory, normed, head after head",
    "xy_sparse": "x_sparse times what the neurons make of y_kv, before dropout: input of the decoder; 0 at the first position",
    "resid_post": "the residual stream after the level, normed",
}


def _export_name(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\\" in value or path.suffix != ".pt" or path.as_posix() != value:
        raise ValueError(f"'{value}' is not the name of a .pt file inside the model's folder, such as bdh_checkpoint.pt")
    return value


class Constant(Schedule):
    """The learning rate over a run, as a multiple of `lr`; constant when no shape is given."""

    shape: Shape = "constant"


class BDHTraining(LanguageTraining):
    """Next-token cross-entropy as in the published run: a constant learning rate, PyTorch's betas, weight decay on everything, no
    clipping."""

    schedule: Constant = Constant()
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NonNegative = 0.1
    decay: Literal["matrices", "all"] = "all"
    clip: Positive | None = None
    batch: Count = 32
    steps: Count = 3000


class BDHPool(Pool):
    """The tokens on which the neurons are measured while it trains."""

    inactive_below: NonNegative = 0.0


class BDHSample(Sample):
    """A text that the model goes on with when its training has ended; the report shows it."""

    prompt: str = "To be or "
    top_k: Count | None = 3


class BDH(Language):
    """Baby Dragon Hatchling (arXiv 2509.26507): one set of weights for all levels, sparse non-negative neurons, strictly causal
    linear attention over them with rotary positions. Text may be longer than `context`: it runs in chunks of it."""

    measured: ClassVar[tuple[str, str]] = ("xy_sparse", "xy_sparse")

    architecture: Literal["bdh"]
    layers: Count = 6
    """Levels. They share their weights."""
    width: Count = 256
    heads: Count = 4
    multiplier: Count = 128
    """Neurons for each dimension of the residual stream, shared out among the heads: each has multiplier x width / heads."""
    context: Count = 512
    """Tokens of a training sequence; longer text carries each head's memory from one chunk of so many tokens to the next."""
    dropout: Share = 0.1
    """Share of `xy_sparse` that training drops, to the nearest 1/65536."""
    training: BDHTraining = BDHTraining()
    pool: BDHPool = BDHPool()
    sample: BDHSample = BDHSample()
    export: Annotated[str, AfterValidator(_export_name)] | None = None
    """Also writes the weights in the format of the reference implementation, as this file beside them: bdh_checkpoint.pt."""

    @property
    def neurons(self) -> int:
        """Neurons of a head."""
        return self.multiplier * self.width // self.heads

    def hooks(self) -> dict[str, int]:
        wide = {"x_sparse": self.heads * self.neurons, "xy_sparse": self.heads * self.neurons, "y_kv": self.heads * self.width}
        return {f"blocks.{n}.{hook}": wide.get(hook, self.width) for n in range(self.layers) for hook in HOOKS}

    def meaning(self, hook: str) -> str:
        return HOOKS[hook.rsplit(".", 1)[1]]

    @model_validator(mode="after")
    def _not_compiled(self) -> Self:
        if self.training.compile:
            raise ValueError("training: compile changes nothing here: forward and gradient are written out, not traced; leave it out")
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.multiplier * self.width % (2 * self.heads):
            raise ValueError(
                f"heads: {self.heads} heads cannot share {self.multiplier * self.width} neurons (multiplier x width) in pairs, "
                "which the rotation turns"
            )
        return self
