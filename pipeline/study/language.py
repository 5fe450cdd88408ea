"""What all language models that are trained here share."""

from collections.abc import Iterable, Iterator
from typing import ClassVar, Self

from pydantic import model_validator

from pipeline.study.base import Count, NonNegative, Positive, Spec
from pipeline.study.faults import Path, raised
from pipeline.study.model import ModelTraining, Trained
from pipeline.study.objective import AnyObjective, Objective
from pipeline.study.training import Beta, Schedule


class Sample(Spec):
    """A text that the trained model goes on with; the report shows it."""

    prompt: str = ""
    """What it begins with; as a document begins when empty."""
    tokens: Count = 100
    """Tokens it goes on for."""
    top_k: Count | None = None
    """Only the k likeliest tokens are drawn from; 1 takes the likeliest."""
    temperature: Positive = 1.0


class LanguageTraining(ModelTraining):
    """Next-token cross-entropy on windows of `context` tokens, in an order of seeded permutations."""

    lr: Positive = 1e-3
    schedule: Schedule = Schedule(warmup=100, final=0.1)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: NonNegative = 0.1
    clip: Positive | None = 1.0
    batch: Count = 32
    steps: Count = 2000
    """Optimizer steps."""
    validate_every: Count = 250
    """Steps between two measurements on the validation split."""
    validate_on: Count | None = None
    """So many sequences, spread over the validation split, are measured while training; all when not given."""
    processes: Count = 1
    """Processes that share each batch (torchrun, data parallel). Part of the result: another number changes floating-point sums,
    and what objectives see at a time, as `accumulate` does."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.batch % (self.processes * self.accumulate):
            raise ValueError(f"batch: {self.batch} cannot be shared by {self.processes} processes in {self.accumulate} parts each")
        return self


class Pool(Spec):
    """The tokens on which a language model's hidden units are measured while it trains."""

    tokens: Count = 16384
    """So many tokens of the validation split, special ones left out, always the first ones: polysemanticity grows with the pool."""
    inactive_below: NonNegative = 0.01
    """A unit counts as silent at a token where its absolute value is below this; 0 counts exact zeros."""


class Language(Trained):
    """A language model that is trained here."""

    form: ClassVar[str] = "tokens"
    measured: ClassVar[tuple[str, str]] = ("mlp_hidden", "mlp_out")
    """The hooks of each block of which sparsity and polysemanticity are tracked."""

    layers: Count
    context: Count
    """Tokens a sequence has at most."""
    training: LanguageTraining = LanguageTraining()
    objectives: list[AnyObjective] = []
    """Training-time objectives, any number together."""
    pool: Pool = Pool()
    sample: Sample = Sample()

    def hooks(self) -> dict[str, int]:
        """Each hook with its width."""
        raise NotImplementedError

    def length(self, sequences: int) -> tuple[int, int]:
        return self.training.steps, self.training.validate_every

    def cores(self) -> int:
        return self.threads * self.training.processes

    def settings(self) -> dict:
        return {key: value for key, value in super().settings().items() if key != "sample"}

    def kinds_of_objective(self) -> list[str]:
        """The kinds its objectives are of, each once."""
        return list(dict.fromkeys(one.objective for one in self.objectives))

    @model_validator(mode="after")
    def _objectives_fit(self) -> Self:
        found = [(("objectives", n, *where), what) for n, one in enumerate(self.objectives) for where, what in self._misfits(n, one)]
        if found:
            raise raised(found)
        return self

    def _misfits(self, number: int, one: Objective) -> Iterator[tuple[Path, str]]:
        """What is wrong with objective `number` in this model: below which of its settings, and what."""
        hook = one.acts_on()
        width = self.hooks().get(f"blocks.0.{hook}")
        if width is None:
            yield (), f"{one.objective} acts on {hook}, which this architecture does not have"
            return
        for problem in one.problems(self.layers, width):
            setting, _, text = problem.partition(": ")
            yield (setting,), text
        for other in self.objectives[:number]:
            twice = {*self._blocks(one)} & {*self._blocks(other)}
            if (other.objective, other.acts_on()) == (one.objective, hook) and twice:
                yield ("layers",), f"another {one.objective} acts on {hook} of block {min(twice)}; one block takes one of a kind"

    def _blocks(self, one: Objective) -> Iterable[int]:
        return range(self.layers) if one.layers is None else one.layers
