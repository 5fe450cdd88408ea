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
    """Positions trained on since the last measurement."""
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


def train(
    model: Network,
    spec: Trained,
    train_split: Examples,
    validation: Examples | None,
    objectives: Sequence = (),
    snapshots: Snapshots | None = None,
    group: Group = ALONE,
    tracker: Tracker | None = None,
) -> Result:
    """Trains `model` in place as `spec` (a study's model spec) says. Raises UserError when the loss is not finite."""
    run = Run(model, spec, train_split, validation, objectives, group)
    if snapshots and (stored := snapshots.load()):
        run.restore(*stored)
    with progress("training", run.steps) if group.first else nullcontext() as bar:
        if bar:
            bar.advance(run.at.step)
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
    """A training run, step by step."""

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
        self.device = next(model.parameters()).device
        torch.manual_seed(derive(spec.seed, "model", "dropout", *([group.rank] if group.rank else [])))
        self.optimizer = ScheduledAdamW(model, self.settings, self.steps)
        special = train_split.special if isinstance(train_split, TokenExamples) else torch.empty(0, dtype=torch.int64)
        self.objectives = objectives
        self.loss = Loss(model, objectives, special)
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
        self.clock.start()
        while not self.at.ended:
            for inputs, targets in self.split.epoch(self.at.epoch, self.settings.batch, self.seed, self.at.batch):
                if len(inputs) % self.group.size:
                    raise UserError(f"{len(inputs)} sequences, all that the split has, cannot be shared by {self.group.size} processes")
                self.at.batch += 1
                yield self.group.share(inputs).to(self.device), self.group.share(targets).to(self.device)
                if self.at.ended:
                    return
            self.at.epoch, self.at.batch = self.at.epoch + 1, 0

    def step(self, inputs: Tensor, targets: Tensor) -> dict[str, float] | None:
        """One optimizer step; the row of the curve where the run is measured after it."""
        begun = time.perf_counter()
        for one in self.objectives:
            one.begin_step(self.at.step / self.steps)
        self._gradient(inputs, targets)
        self.clock.computed(begun)
        norm = self.optimizer.gradient_norm()
        self.optimizer.step(norm)
        for one in self.objectives:
            one.end_step()
        self._add("grad_norm", norm)
        self.at.step += 1
        self.at.positions += targets.numel() * self.group.size
        last = self.at.step == self.steps
        if self.at.step % self.every and not last:
            return None
        row = self._measured(inputs, targets, begun) if self.group.first else None
        self.at.positions, self.sums = 0, {}
        self.optimizer.plateau.factor = self.group.said(self.optimizer.plateau.factor)
        self.at.ended = last or bool(self.group.said(self._stale()))
        self.clock.start()
        return row

    def _gradient(self, inputs: Tensor, targets: Tensor) -> None:
        """Gradients of the whole batch, part by part."""
        parts = min(self.settings.accumulate, len(inputs))
        for number, (some, wanted) in enumerate(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True), 1):
            share = len(some) / len(inputs)
            with self._synchronised(number == parts):
                with autocast(self.device, self.settings.precision):
                    total, found = self.loss(self.forward, some, wanted)
                (share * total if parts > 1 else total).backward()
            for name, value in found.items():
                self._add(name, share * value)

    def _synchronised(self, now: bool) -> AbstractContextManager:
        return nullcontext() if now or self.group.size == 1 else self.forward.no_sync()

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def _measured(self, inputs: Tensor, targets: Tensor, begun: float) -> dict[str, float]:
        """The row of the curve: means since the last one, and what is measured now."""
        self.clock.measured(self.at.step, self.at.positions, begun)
        if self.objectives:
            self.clock.share(without_objectives(self.loss, inputs, targets, self.device))
        count = self.at.step - (self.at.rows[-1]["step"] if self.at.rows else 0)
        row = {"step": self.at.step, "lr": self.optimizer.lr, **{name: self.sums[name].item() / count for name in sorted(self.sums)}}
        if self.objectives:
            terms = sum(row[name] for name in self.loss.names if name in row)
            row["objectives_ratio"] = terms / row["train_loss"]
        for name, one in zip(self.loss.names, self.objectives, strict=True):
            row |= {f"{name}_{what}": value for what, value in one.tracked().items()}
        if self.validation is not None:
            sequences = getattr(self.settings, "validate_on", None)
            row["validation_loss"] = measure(self.model, self.validation, self.settings.batch, sequences)["loss"]
            if isinstance(self.validation, TokenExamples):
                row["validation_perplexity"] = exp(min(row["validation_loss"], 20.0))
        if not all(isfinite(value) for value in row.values()):
            _diverged(self.at.step)
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
        found |= named("sums.", self.sums) | named("best.", self.best or {})
        for number, one in enumerate(self.objectives):
            found |= named(f"objective.{number}.", one.resume_state())
        for name, state in random_state().items():
            found |= {f"random.{rank}.{name}": value for rank, value in enumerate(self.group.gathered(state))}
        self.at.plateau = self.optimizer.plateau.state()
        return found

    def restore(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Goes on from a snapshot."""
        self.at = Progress(**values)
        self.model.load_state_dict(under("model.", tensors))
        self.optimizer.restore({name: value.to(self.device) for name, value in under("optimizer.", tensors).items()}, self.at.step)
        self.optimizer.plateau.restore(self.at.plateau)
        self.sums = {name: value.to(self.device) for name, value in under("sums.", tensors).items()}
        self.best = under("best.", tensors) or None
        for number, one in enumerate(self.objectives):
            one.resume(under(f"objective.{number}.", tensors))
        set_random_state(under(f"random.{self.group.rank}.", tensors))
        self.clock = Clock(self.at.times, self.device)


def _diverged(step: int) -> NoReturn:
    raise UserError(f"training diverged: the loss is not finite after step {step}; lower training.lr")
