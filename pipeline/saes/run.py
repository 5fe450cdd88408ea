"""One run of training an SAE: a function of (rows, spec, seed), however often it is interrupted.

The numbers of a step are kept by the step itself: counters come from what fired, which is few pairs once latents are sparse.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.seeds import derive
from pipeline.console import say
from pipeline.saes import decoder, resampling, verdicts
from pipeline.saes.base import SAE, Losses, Step
from pipeline.saes.held_out import HeldOut
from pipeline.saes.progress import Progress
from pipeline.saes.units import Units
from pipeline.study.sae import SAE as Spec
from pipeline.training.device import autocast
from pipeline.training.optimizer import ScheduledAdamW
from pipeline.training.processes import ALONE, Group
from pipeline.training.snapshot import Tensors, named, under

Sample = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Data:
    """What a run has to know of the rows it learns from."""

    inputs: Units
    outputs: Units
    """Those of the inputs, unless it is a transcoder."""
    variance: float
    """Of the outputs in their units, summed over dimensions."""
    centre_E: Tensor
    """Where b_dec begins, in units of the outputs."""
    rows: int
    """Of the whole run."""
    steps: int
    some_BD: Tensor | None = None
    """Some rows of the inputs in their units, by which the encoder is scaled at the beginning."""


class Run:
    """A training run, step by step: `sae` is initialised and trained in place, in the units of `data`, as `spec` says."""

    def __init__(
        self,
        sae: SAE,
        spec: Spec,
        data: Data,
        group: Group = ALONE,
        held_out: HeldOut | None = None,
        sample: Sample | None = None,
        name: str = "",
    ) -> None:
        """`held_out`, which the first process has, measures weights that fit raw activations; `sample` gives the raw rows, and what is
        predicted from them, that dead latents are resampled from; `name` stands before messages, where several runs go on together."""
        self.sae, self.spec, self.data, self.group = sae, spec, data, group
        self.called = f"{name}: " if name else ""
        self.held_out, self.sample, self.settings = held_out, sample, spec.training.for_run(len(sae.W_dec), data.steps)
        self.device = data.inputs.shift.device
        sae.initialise(data.centre_E.cpu(), None if data.some_BD is None else data.some_BD.cpu())
        sae.to(self.device)
        self.optimizer = ScheduledAdamW(sae, self.settings, data.steps)
        self.window = self.settings.window(data.rows)
        self.every = -(-data.steps // self.settings.points)
        self.resample_at = {ceil(share * data.steps) for share in self.settings.resample}
        self.since_M = torch.zeros(len(sae.W_dec), dtype=torch.int64, device=sae.W_dec.device)
        """Rows since each latent fired last."""
        self.fired_M = torch.zeros_like(self.since_M)
        """Rows in which it fired since the last row of the curve."""
        self.sums: Tensors = {}
        """Of this process, since then."""
        self.best: Tensors | None = None
        self.good: Tensors | None = self._weights() if self.settings.when_wrong == "warn" else None
        self.at = Progress()

    def step(self, x_BD: Tensor, y_BE: Tensor) -> dict[str, float] | None:
        """One optimizer step on a batch that all processes have; the row of the curve where the run is measured after it. `y_BE` is
        `x_BD` itself unless it is a transcoder."""
        rows = len(x_BD)
        x = self.data.inputs.apply(self.group.share(x_BD))
        y = x if y_BE is x_BD else self.data.outputs.apply(self.group.share(y_BE))
        with autocast(self.device, self.settings.precision):
            found = self.sae.losses(x, y, self._told())
        found.total.backward()
        self.group.average([p for p in self.sae.parameters() if p.requires_grad], len(x) / rows)
        if self.sae.unit_decoder():
            decoder.remove_parallel(self.sae.W_dec)
        self.optimizer.step()
        if self.sae.unit_decoder():
            decoder.renormalise(self.sae.W_dec)
        self._count(found, len(x) / rows, rows)
        if self.at.step in self.resample_at:
            self._resample()
        return self._point() if self.at.step % self.every == 0 or self.at.step == self.data.steps else None

    def _told(self) -> Step:
        return Step(
            self.data.variance,
            sparsity=min(1.0, (self.at.step + 1) / max(1.0, self.settings.sparsity_warmup * self.data.steps)),
            k=self.spec.k_at(self.at.step / self.data.steps),
            dead_M=self._dead() if self.at.rows >= self.window else None,
            summed=self.group.sum,
            gathered=self.group.joined,
            rank=self.group.rank,
        )

    def _dead(self) -> Tensor:
        """Latents that did not fire within the window, or ever while that is not over (M,)."""
        return self.since_M >= min(self.window, self.at.rows)

    @torch.no_grad()
    def _count(self, found: Losses, share: float, rows: int) -> None:
        """`share`: that of this process in the batch of `rows`."""
        fired_M = self.group.sum(found.fired_M)
        self.since_M.add_(rows).masked_fill_(fired_M > 0, 0)
        self.fired_M += fired_M
        for name, value in {"loss": found.total * share, **{name: part * share for name, part in found.parts.items()}}.items():
            self._add(name, value)
        self._add("squared_error", found.squared_error)
        self.at.step, self.at.rows, self.at.counted = self.at.step + 1, self.at.rows + rows, self.at.counted + rows
        if self.at.step == 1:
            self.at.first_l0 = fired_M.sum().item() / rows

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _resample(self) -> None:
        assert self.sample is not None
        dead_M = self._dead()
        x, y = self.sample()
        seed = derive(self.spec.seed, "sae", "resample", self.at.step)
        changed = resampling.resample(self.sae, dead_M, self.data.inputs.apply(x), self.data.outputs.apply(y), seed)
        for name in resampling.own(self.sae):
            self.optimizer.forget(self.sae.get_parameter(name), changed)
        self.since_M[changed] = 0
        self.at.resampled += len(changed)
        if self.group.first:
            say(f"{self.called}step {self.at.step:,}: {len(changed):,} of {int(dead_M.sum()):,} dead latents were given new directions")

    def _point(self) -> dict[str, float]:
        """A row of the curve: means since the last one, and what is measured now."""
        steps = self.at.step - (int(self.at.curve[-1]["step"]) if self.at.curve else 0)
        sums = {name: self.group.sum(self.sums[name]).item() for name in sorted(self.sums)}
        squared = sums.pop("squared_error")
        row = {"step": self.at.step, "lr": self.optimizer.lr, **{name: value / steps for name, value in sums.items()}}
        row["fve"] = 1 - squared / self.at.counted / self.data.variance
        row["l0"] = self.fired_M.sum().item() / self.at.counted
        row["dead"] = self._dead().double().mean().item()
        self.at.curve.append(row)
        fault = verdicts.fault(self.at.curve, self.at.step == self.data.steps, self.sae)
        if self.held_out and not fault:
            row |= self.held_out.measure(self.folded())
            row["validation_loss"] = self._held_out_loss(row)
        if self.group.said(not isfinite(row.get("validation_loss", 0.0))):
            fault = "the loss on held-out rows is not finite"
        if fault:
            self._diverged(fault)
            return row
        self.fired_M.zero_()
        self.sums, self.at.counted = {}, 0
        self._judge(row)
        self.optimizer.plateau.factor = self.group.said(self.optimizer.plateau.factor)
        stale = self.settings.stop_after is not None and self.at.waited >= self.settings.stop_after
        self.at.ended = self.at.step == self.data.steps or bool(self.group.said(stale))
        early = self.at.step - self.every < verdicts.EARLY * self.data.steps <= self.at.step
        if self.at.ended:
            self._check_end(row)
        elif early and self.group.first and (told := verdicts.unmoved(self.spec, row["l0"], self.at.first_l0)):
            say(f"{self.called}after step {self.at.step:,}: {told}")
        return row

    def _held_out_loss(self, row: dict[str, float]) -> float:
        """What `keep`, `stop_after` and a plateau go by. An error alone is least where L0 has not fallen yet."""
        assert self.held_out is not None
        error, wanted = 1 - row["validation_fve"], self.spec.wanted_l0()
        if wanted is not None:
            return error + (row["validation_l0"] / wanted - 1) ** 2
        return self.held_out.loss(self.sae, self.data.inputs, self.data.outputs, self.data.variance) if self.spec.penalised() else error

    def _judge(self, row: dict[str, float]) -> None:
        """Keeps the best weights, and counts the points since."""
        if self.good is not None:
            self.good, self.at.good_step = self._weights(), self.at.step
        if "validation_loss" not in row or self.at.step < self.spec.settled() * self.data.steps:
            return
        loss = row["validation_loss"]
        self.optimizer.plateau.measured(loss)
        if loss < self.at.best_loss:
            self.at.best_loss, self.at.best_step, self.at.waited, self.best = loss, self.at.step, 0, self._weights()
        else:
            self.at.waited += 1

    def _diverged(self, fault: str) -> None:
        told = f"training diverged: {fault} after step {self.at.step:,}; lower training.lr"
        if self.good is None:
            raise UserError(f"{self.called}{told}, or give `training.when_wrong: warn` to go on with the last good weights")
        self._tell(f"{told}. The weights are those of step {self.at.good_step:,}")
        self.sae.load_state_dict(self.good)
        self.at.diverged = self.at.ended = True

    def _check_end(self, row: dict[str, float]) -> None:
        """What the first process measures on held-out rows is of the SAE as it is after training; without them it is of the last rows."""
        l0, fve = (self.group.said(row.get(f"validation_{name}", row[name])) for name in ("l0", "fve"))
        found = verdicts.at_the_end(self.spec, row, l0, fve, self.at.first_l0)
        if found is None:
            return
        told, way = found
        if self.settings.when_unmoved == "stop":
            raise UserError(f"{self.called}{told}; {way}, or give `training.when_unmoved: warn`")
        self._tell(told)

    def _tell(self, what: str) -> None:
        self.at.wrong = what
        if self.group.first:
            say(f"warning: {self.called}{what}")

    def _weights(self) -> Tensors:
        """A copy of what inference needs, beside the device."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.sae.state_dict().items()}

    def folded(self, weights: Tensors | None = None) -> SAE:
        """A copy that takes raw activations; with other weights of this run, or those it has."""
        found = deepcopy(self.sae)
        if weights is not None:
            found.load_state_dict(weights)
        found.fold(self.data.inputs, self.data.outputs)
        return found.eval().requires_grad_(False)

    def kept(self) -> SAE:
        """The weights the study goes on with, folded."""
        return self.folded(self.best if self.settings.keep == "best" and self.best else None)

    @property
    def kept_step(self) -> int:
        """The step after which they were the weights."""
        return self.at.best_step if self.settings.keep == "best" and self.best else self.at.last_step

    def facts(self) -> dict[str, Any]:
        """What the run's manifest says of it; `dead` and what was measured on held-out rows are of the kept weights."""
        row = next((row for row in self.at.curve if row["step"] == self.kept_step), {})
        measured = {name: value for name, value in row.items() if name == "dead" or name.startswith("validation_")}
        return measured | {
            "rows_seen": self.at.rows,
            "steps": self.at.step,
            "lr": self.settings.lr,
            "dead_window": self.window,
            "resampled": self.at.resampled,
            "kept": self.settings.keep,
            "kept_step": self.kept_step,
            "wrong": self.at.wrong,
        }

    def tensors(self) -> Tensors:
        """All tensors of the run's state. Every process has to call it; the first one's are whole."""
        found = named("model.", _state(self.sae)) | named("optimizer.", self.optimizer.tensors())
        found |= {"since": self.since_M, "fired": self.fired_M}
        found |= named("best.", self.best or {}) | named("good.", self.good or {})
        for name in sorted(self.sums):
            found |= {f"sums.{rank}.{name}": value for rank, value in enumerate(self.group.gathered(self.sums[name]))}
        self.at.plateau = self.optimizer.plateau.state()
        return found

    def restore(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Goes on from a snapshot."""
        self.at = Progress(**values)
        with torch.no_grad():
            for name, value in _state(self.sae).items():
                value.copy_(tensors[f"model.{name}"])
        self.optimizer.restore({name: value.to(self.device) for name, value in under("optimizer.", tensors).items()}, self.at.step)
        self.optimizer.plateau.restore(self.at.plateau)
        self.since_M, self.fired_M = tensors["since"].to(self.device), tensors["fired"].to(self.device)
        self.sums = {name: value.to(self.device) for name, value in under(f"sums.{self.group.rank}.", tensors).items()}
        self.best, self.good = under("best.", tensors) or None, under("good.", tensors) or None


def _state(sae: SAE) -> Tensors:
    """All that an SAE learns or carries, also what inference does not need."""
    return dict(sae.named_parameters()) | dict(sae.named_buffers())
