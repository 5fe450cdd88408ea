"""What all SAE architectures share. An architecture is one file in `saes/`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.study.base import Count, Distinct, Fraction, Name, Number, Positive, Seed, Share, Spec
from pipeline.study.training import Optimizer, Schedule

RAISED = 6e-3
"""To which the learning rate of a short run is raised at most: about the largest that was measured to help. In few latents the rule would
go far above, and b_dec could not settle where activations are small."""


class SAETraining(Optimizer):
    """Batches from a seeded permutation of the rows of the train store."""

    lr: Positive | None = None  # type: ignore[assignment]
    """Learning rate at the top of its schedule. When not given, 2e-4 x (latents / 2^14)^-1/2 (Gao et al. 2024, figure 3), which is for
    runs of very many steps; in those of fewer than 2^16 it is raised to (2^16 / steps)^1/2 times that, 8 times and 0.006 at most
    (docs/sae-training.md)."""
    schedule: Schedule = Schedule(shape="linear", warmup=100, hold=0.8)
    epochs: Count = 10
    """Passes over the store, each in equal batches of at most `batch` rows."""
    batch: Count = 1024
    memory_mb: Count = 2048
    """Memory for rows of the store. While they fit, the order is an exact permutation; otherwise chunks in random order are
    mixed as many as fit."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the dense products; weights, thresholds, norms and sums stay in float32."""
    sparsity_warmup: Fraction = 0.05
    """Share of the run in which a sparsity penalty rises from 0; without one it has no effect."""
    dead_tokens: Count = 10_000_000
    """A latent is dead when it has fired in none of so many rows, or of `dead_share` of the run where that is less."""
    dead_share: Annotated[float, Number, Field(gt=0, le=1)] = 0.2
    resample: Annotated[list[Share], Distinct] = []
    """Points of the run, as shares of its steps, at which dead latents are given directions of rows that are reconstructed badly
    (Bricken et al. 2023). Not before `dead_tokens` or `dead_share` have passed: until then no latent is dead."""
    points: Count = 50
    """Rows in the training curve, each with what is measured on held-out rows."""
    validate_on: Count = 2**13
    """Rows of the validation store, spread evenly, that are measured; none where the activations have no such split."""
    keep: Literal["last", "best"] = "last"
    """Which weights the study goes on with: of the last step, or of the best held-out loss, from where the sparsity penalty has its full
    weight, and k its value, on. The loss is 1 - FVE; with `target_l0` more by the square of how far L0 is off, as a share; with another
    penalty that of training. Both are saved."""
    stop_after: Count | None = None
    """Points of the curve without a new best held-out loss after which training stops."""
    snapshots: Annotated[list[Count], Distinct] = []
    """Steps after which the weights are kept as well, to see how features emerge."""
    when_wrong: Literal["stop", "warn"] = "stop"
    """What a run does whose loss is no longer finite, or whose error is more than twice the variance and grows, or is at the end: stop with
    an error, or say so and go on with the last good weights."""
    when_unmoved: Literal["stop", "warn"] = "warn"
    """What a run does whose L0 did not fall under a sparsity penalty, missed the one that was asked for, or is 0 at the end, or whose FVE
    is below 0 there: end with an error, or say so, here and in the report."""
    processes: Count = 1
    """Processes that share each batch (torchrun), on one machine."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.processes > self.batch:
            raise ValueError(f"processes: {self.processes} cannot share batches of {self.batch} rows")
        return self

    def for_run(self, latents: int, steps: int) -> Self:
        """The same with a learning rate, for a run of so many steps."""
        published = 2e-4 * (latents / 2**14) ** -0.5
        raised = min(published * min(8.0, max(1.0, (2**16 / steps) ** 0.5)), RAISED)
        return self if self.lr is not None else self.model_copy(update={"lr": max(published, raised)})

    def window(self, rows: int) -> int:
        """Rows without a fire after which a latent is dead, in a run of so many."""
        return max(1, min(self.dead_tokens, int(self.dead_share * rows)))

    def held_out(self) -> str | None:
        """A setting that takes a validation split, where one is given."""
        taken = {"keep": self.keep == "best", "stop_after": self.stop_after is not None, "schedule": self.schedule.shape == "plateau"}
        return next((name for name, given in taken.items() if given), None)


class Normalise(Spec):
    """Units in which the SAE is trained. They are folded into its weights when it is saved."""

    centre: bool = False
    """Whether the mean of the activations is subtracted."""
    scale: Literal["none", "norm", "whiten"] = "none"
    """`norm`: one factor, that makes the mean squared norm, of what is left where the mean is subtracted, the width; `whiten`: equal
    variance in all directions (takes `centre`, and the store's covariance)."""

    @model_validator(mode="after")
    def _whitened_about_the_mean(self) -> Self:
        if self.scale == "whiten" and not self.centre:
            raise ValueError("scale: `whiten` is about the mean; give `centre: true` as well")
        return self


def centred_by_default(raw: Any) -> Any:
    """Settings of an SAE with units of mean 0 and mean squared norm of the width, where they say nothing else."""
    given = raw.get("normalise", {})
    return {**raw, "normalise": {"centre": True, "scale": "norm", **given}} if isinstance(given, dict) else raw


class SAE(Spec):
    """A sparse dictionary trained on each of some hooks."""

    architecture: str
    activations: Name
    """The activations it is trained on. If their model is swept, there is one SAE for each variant."""
    hooks: Annotated[list[str], Field(min_length=1), Distinct] | None = None
    """Which of their hooks; all when not given."""
    outputs: Annotated[list[str], Field(min_length=1)] | None = None
    """For each of `hooks` the hook that is predicted from it: a transcoder (Dunefsky et al. 2024, arXiv 2406.11944)."""
    skip: bool = False
    """Whether a linear map of the input is added to what a transcoder predicts (Paulo et al. 2025, arXiv 2501.18823)."""
    latents: Count | None = None
    """Number of latents; 8 x the hook's width when not given, as in Bricken et al. 2023."""
    init: Literal["tied", "linear"] = "tied"
    """`tied`: random unit decoder rows, the encoder their transpose, scaled by the activations (of a transcoder, random columns of norm
    0.1), b_dec as `b_dec` says; `linear`: torch.nn.Linear's."""
    b_dec: Literal["mean", "geometric-median", "zero"] = "mean"
    """Where b_dec begins, with `init: tied`: a centre of the activations."""
    subtract_b_dec: bool = True
    """Whether b_dec is subtracted from the input; never of a transcoder."""
    decoder: Literal["unit", "free"] = "unit"
    """`unit`: decoder rows stay at norm 1, and the part of their gradient along them is removed; `free`: as the loss moves them."""
    normalise: Normalise = Normalise()
    """Of a transcoder `centre: true` and `scale: norm`, for what it says nothing of: it subtracts no b_dec, and what all rows have in
    common would choose the same latents for all of them."""
    seed: Seed = 0
    """Seed of initial weights and batch order."""
    threads: Count = 1
    """Compute threads. Part of the result: another number changes floating-point sums."""
    train_together: bool = False
    """Whether the variants of this entry that share seed, batch, epochs, memory, threads and processes are trained in one job, on one
    read of the store. The weights are those of separate training; a change of one variant trains all of its job again."""
    training: SAETraining = SAETraining()
    sweep: dict[str, list[Any]] = {}
    """Settings that vary: each key (dotted for nested ones) with its values; every combination is a variant."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_transcoders(cls, raw: Any) -> Any:
        return centred_by_default({"subtract_b_dec": False, **raw}) if isinstance(raw, dict) and raw.get("outputs") else raw

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.outputs is None:
            if self.skip:
                raise ValueError("skip: is for transcoders; give `outputs`")
            return self
        if self.hooks is None or len(self.outputs) != len(self.hooks):
            raise ValueError(f"outputs: {len(self.outputs)} of them for {len(self.hooks or [])} `hooks`; give one for each")
        if self.subtract_b_dec:
            raise ValueError("subtract_b_dec: of a transcoder, b_dec is in the space of its output and cannot be subtracted from its input")
        return self

    def batches(self) -> tuple[int, ...]:
        """What decides the batches of a run, and how it computes: the same in all variants that are trained together."""
        settings = self.training
        return self.seed, self.threads, settings.batch, settings.epochs, settings.memory_mb, settings.processes

    def k_at(self, share: float) -> int | None:
        """Latents that may fire for one input when this share of the run is over; None where no number is kept."""
        return None

    def settled(self) -> float:
        """Share of the run from which its loss is the same at each step: one of few penalties or many latents is no measure of the end."""
        return self.training.sparsity_warmup if self.penalised() else 0.0

    def penalised(self) -> bool:
        """Whether a penalty in the loss is to make latents sparse."""
        return False

    def wanted_l0(self) -> float | None:
        """The L0 that training is to reach; None where none is asked for, or it is kept by counting."""
        return None

    def lacks(self, splits: list[str]) -> str | None:
        """What is wrong with these settings on activations of these splits, as "setting: what"."""
        name = self.training.held_out()
        if name is None or "validation" in splits:
            return None
        return f"training.{name}: goes by a loss on held-out rows; add `validation` to `splits` of activations.{self.activations}"

    def idle(self) -> dict[str, str]:
        """Settings that are given and change nothing, by dotted name, and why."""
        found = {}
        if self.init == "linear" and "b_dec" in self.model_fields_set:
            found["b_dec"] = "has no effect with `init: linear`, which draws b_dec as it draws the weights; leave one of them out"
        if self.training.sparsity_warmup and "sparsity_warmup" in self.training.model_fields_set and not self.penalised():
            found["training.sparsity_warmup"] = "has no effect, since there is no sparsity penalty that could rise; leave it out"
        return found

    def problems(self, width: int) -> list[str]:
        """What is wrong with these settings on a hook of this width, as "setting: what"."""
        return []

    def settings(self) -> dict:
        """What the training step reads."""
        return self.model_dump(mode="json", exclude={"sweep", "activations", "hooks", "train_together"})
