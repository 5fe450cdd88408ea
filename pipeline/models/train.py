"""Trains a model: a run is a function of (dataset, spec, seed), however often it is interrupted."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import exp, isfinite
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.seeds import derive
from pipeline.console import progress
from pipeline.models.base import Network
from pipeline.models.examples import Examples, TokenExamples
from pipeline.models.loss import Loss
from pipeline.models.measure import measure, watched
from pipeline.models.timing import Clock, without_objectives
from pipeline.study.language import Language
from pipeline.study.model import Trained
from pipeline.training.curve import Curve
from pipeline.training.device import autocast
from pipeline.training.optimizer import ScheduledAdamW
from pipeline.training.processes import ALONE, Group
from pipeline.training.snapshot import Snapshots, Tensors, named, random_state, set_random_state, under
from pipeline.training.tracking import Tracker


@dataclass
class Progress:
    """Where a run stands, but for its tensors. All of it is plain numbers, for snapshots."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Batches of the epoch that are done."""
    rows: list[dict[str, float]] = field(default_factory=list)
    times: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = float("inf")
    waited: int = 0
    """Measurements since the best."""
    positions: int = 0
    """Positions trained on since the last measurement, and the seconds that took."""
    seconds: float = 0.0
    plateau: list[float] = field(default_factory=list)
    ended: bool = False


@dataclass
class Result:
    """A finished run. The model holds the weights of its last step."""

    curve: Curve
    times: Curve
    best: Tensors | None
    """The weights with the lowest measured validation loss; None without validation."""
    best_step: int


def train(run: "Run", snapshots: Snapshots | None = None, tracker: Tracker | None = None) -> Result:
    """Takes a run to its end. Raises UserError when its loss is not finite."""
    group = run.group
    with progress("training", run.steps, done=run.at.step) if group.first else nullcontext() as bar:
        for inputs, targets in run.batches():
            row = run.step(inputs, targets)
            if bar:
                bar.advance(1, _note(row) if row else None)
            if row and tracker:
                tracker.log(row, run.at.times[-1])
            if snapshots and not run.at.ended and group.said(snapshots.due()):
                tensors = run.tensors()
                if group.first:
                    snapshots.save(tensors, vars(run.at))
    return Result(Curve(run.at.rows), Curve(run.at.times), run.best, run.at.best_step)


def _note(row: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if name.endswith("_loss"))


class Run:
    """A training run, step by step: `model` is trained in place as `spec` (a study's model spec) says."""

    def __init__(
        self,
        model: Network,
        spec: Trained,
        train_split: Examples,
        validation: Examples | None,
        objectives: Sequence = (),
        group: Group = ALONE,
    ) -> None:
        self.model, self.settings, self.seed, self.group = model, spec.training, spec.seed, group
        self.split, self.validation = train_split, validation
        self.steps, self.every = spec.length(len(train_split))
        self.size = spec.scoring_batch()
        self.device, self.dtype = next(model.parameters()).device, next(model.parameters()).dtype
        torch.manual_seed(derive(spec.seed, "model", "dropout", *([group.rank] if group.rank else [])))
        self.optimizer = ScheduledAdamW(model, self.settings, self.steps)
        special = train_split.special if isinstance(train_split, TokenExamples) else torch.empty(0, dtype=torch.int64)
        self.objectives = objectives
        self.loss = Loss(model, objectives, special, derive(spec.seed, "model", "objective", "tokens", group.rank))
        self.forward: Any = torch.compile(model) if self.settings.compile else model
        if group.size > 1:
            self.forward = DistributedDataParallel(self.forward)
        self.sums: Tensors = {}
        self.best: Tensors | None = None
        self.at = Progress()
        self.clock = Clock(self.at.times, self.device)
        self.units = None
        if isinstance(spec, Language) and group.first:
            self.units = watched(spec, {"train": train_split, "validation": validation})
        model.train()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from where the run stands to its end; this process' part of each."""
        self.clock.start(self.at.seconds)
        while not self.at.ended:
            for inputs, targets in self.split.epoch(self.at.epoch, self.settings.batch, self.seed, self.at.batch):
                if len(inputs) % self.group.size:
                    raise UserError(f"{len(inputs)} sequences, all that the split has, cannot be shared by {self.group.size} processes")
                self.at.batch += 1
                yield self._here(inputs), self._here(targets)
                if self.at.ended:
                    return
            self.at.epoch, self.at.batch = self.at.epoch + 1, 0

    def _here(self, batch: Tensor) -> Tensor:
        """This process' part of a batch, on its device; numbers in the precision of the weights."""
        part = self.group.share(batch).to(self.device)
        return part.to(self.dtype) if part.is_floating_point() else part

    def step(self, inputs: Tensor, targets: Tensor) -> dict[str, float] | None:
        """One optimizer step; the row of the curve where the run is measured after it."""
        begun = time.perf_counter()
        for one in self.objectives:
            one.begin_step(self.at.step / self.steps)
        self._gradient(inputs, targets)
        last = self.at.step + 1 == self.steps
        measured = last or (self.at.step + 1) % self.every == 0
        timed = bool(self.objectives) and (measured or self.device.type == "cpu")  # waiting for a GPU at every step would slow it
        if timed:
            self.clock.computed(begun)
        norm = self.optimizer.gradient_norm()
        self.optimizer.step(norm)
        for one in self.objectives:
            one.end_step()
        self._add("grad_norm", norm)
        self.at.step += 1
        self.at.positions += targets.numel() * self.group.size
        if timed:
            self.clock.stepped(begun)
        if not measured:
            return None
        self.sums = self.group.mean(self.sums)
        row = self._measured(inputs, targets) if self.group.first else None
        self.at.positions, self.at.seconds, self.sums = 0, 0.0, {}
        self.optimizer.plateau.factor = self.group.said(self.optimizer.plateau.factor)
        self.at.ended = last or bool(self.group.said(self._stale()))
        self.clock.start()
        return row

    def _gradient(self, inputs: Tensor, targets: Tensor) -> None:
        """Gradients of the whole batch, part by part."""
        parts = self._parts(inputs, targets)
        for number, (some, wanted) in enumerate(parts, 1):
            share = len(some) / len(inputs)
            with self._synchronised(number == len(parts)):
                with autocast(self.device, self.settings.precision):
                    total, found = self.loss(self.forward, some, wanted)
                (share * total if len(parts) > 1 else total).backward()
            for name, value in found.items():
                self._add(name, share * value)

    def _parts(self, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        count = min(self.settings.accumulate, len(inputs))
        return list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))

    def _synchronised(self, now: bool) -> AbstractContextManager:
        return nullcontext() if now or self.group.size == 1 else self.forward.no_sync()

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def _measured(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The row of the curve: means since the last one, and what is measured now."""
        self.clock.measured(self.at.step, self.at.positions)
        # Compiled, it would have to be compiled anew without them; of several processes, the time includes their waiting.
        if self.objectives and not self.settings.compile and self.group.size == 1:
            parts = self._parts(inputs, targets)
            self.clock.share(without_objectives(self.loss, parts, self.device, self.settings.precision))
        count = self.at.step - (self.at.rows[-1]["step"] if self.at.rows else 0)
        row = {"step": self.at.step, "lr": self.optimizer.lr, **{name: self.sums[name].item() / count for name in sorted(self.sums)}}
        if self.objectives:
            terms = sum(row[name] for name in self.loss.names if name in row)
            row["objectives_ratio"] = terms / row["train_loss"]
        for name, one in zip(self.loss.names, self.objectives, strict=True):
            row |= {f"{name}_{what}": value for what, value in one.tracked().items()}
        if self.validation is not None:
            sequences = getattr(self.settings, "validate_on", None)
            row["validation_loss"] = measure(self.model, self.validation, self.size, sequences)["loss"]
            if isinstance(self.validation, TokenExamples):
                row["validation_perplexity"] = exp(min(row["validation_loss"], 20.0))
        for name, value in row.items():
            if not isfinite(value) and (name.endswith("_loss") or name in (*self.loss.names, "grad_norm")):
                _diverged(name, self.at.step)
        if self.units:
            row |= {f"{what}_{n}": value for what, values in self.units.measure(self.model).items() for n, value in enumerate(values)}
        self.model.train()
        self.at.rows.append(row)
        self._judge(row)
        return row

    def _judge(self, row: dict[str, float]) -> None:
        """Keeps the best weights, and counts the measurements since."""
        if "validation_loss" not in row:
            return
        self.optimizer.plateau.measured(row["validation_loss"])
        if row["validation_loss"] < self.at.best_loss:
            self.at.best_loss, self.at.best_step, self.at.waited = row["validation_loss"], self.at.step, 0
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        else:
            self.at.waited += 1

    def _stale(self) -> bool:
        return self.settings.stop_after is not None and self.at.waited >= self.settings.stop_after

    def tensors(self) -> Tensors:
        """All tensors of the run's state. Every process has to call it; the first one's are whole."""
        found = named("model.", self.model.state_dict()) | named("optimizer.", self.optimizer.tensors())
        found |= named("best.", self.best or {})
        for name in sorted(self.sums):
            found |= {f"sums.{rank}.{name}": value for rank, value in enumerate(self.group.gathered(self.sums[name]))}
        for number, one in enumerate(self.objectives):
            found |= named(f"objective.{number}.", one.resume_state())
        for name, state in {**random_state(), "tokens": self.loss.generator.get_state()}.items():
            found |= {f"random.{rank}.{name}": value for rank, value in enumerate(self.group.gathered(state))}
        self.at.plateau, self.at.seconds = self.optimizer.plateau.state(), self.clock.since()
        return found

    def restore(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Goes on from a snapshot."""
        self.at = Progress(**values)
        self.model.load_state_dict(under("model.", tensors))
        self.optimizer.restore({name: value.to(self.device) for name, value in under("optimizer.", tensors).items()}, self.at.step)
        self.optimizer.plateau.restore(self.at.plateau)
        self.sums = {name: value.to(self.device) for name, value in under(f"sums.{self.group.rank}.", tensors).items()}
        self.best = under("best.", tensors) or None
        for number, one in enumerate(self.objectives):
            one.resume(under(f"objective.{number}.", tensors))
        states = under(f"random.{self.group.rank}.", tensors)
        set_random_state(states)
        self.loss.generator.set_state(states["tokens"])
        self.clock = Clock(self.at.times, self.device)


def _diverged(what: str, step: int) -> NoReturn:
    raise UserError(f"training diverged: {what} is not finite after step {step}; lower training.lr")
