"""Trains SAEs on one read of a store: one, or several that differ in what a batch does to them."""

import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.activations.loader import ActivationLoader, Position
from pipeline.activations.store import ActivationStore, Column
from pipeline.artifacts.errors import UserError
from pipeline.console import progress, say
from pipeline.saes import checkpoint, normalise
from pipeline.saes.base import SAE
from pipeline.saes.held_out import HeldOut
from pipeline.saes.progress import Progress
from pipeline.saes.run import Data, Run
from pipeline.saes.sample import sample
from pipeline.study.sae import SAE as Spec
from pipeline.training.device import device, has_bfloat16
from pipeline.training.processes import ALONE, Group
from pipeline.training.snapshot import Snapshots, replacing, under
from pipeline.training.tracking import Tracker

SAMPLE = 2**15
"""Rows of the train store that a geometric median is taken of (32,768 in Gao et al. 2024), and that dead latents are resampled from."""
SCALED_BY = 2**8
"""Rows by which a tied encoder is scaled at the beginning."""
SPARSITY_ROWS = 2**17
"""Rows of the train store, from its start, over which firing frequencies are counted."""


@dataclass(frozen=True)
class Source:
    """The rows of a hook that SAEs learn from, and those of the hook that is predicted: the same one, unless they are transcoders."""

    store: ActivationStore
    hook: str
    output: str
    validation: ActivationStore | None = None
    _measured: dict[int, HeldOut] = field(default_factory=dict)

    @property
    def hooks(self) -> list[str]:
        return list(dict.fromkeys([self.hook, self.output]))

    @cached_property
    def _sample(self) -> dict[str, Tensor]:
        return sample(self.store, self.hooks, SAMPLE, device())

    def sample(self) -> tuple[Tensor, Tensor]:
        """A fixed sample of the rows, and of what is predicted; read once for all runs, and held."""
        return self._sample[self.hook], self._sample[self.output]

    @cached_property
    def few(self) -> Tensor:
        """Fewer of the rows, by which encoders are scaled."""
        return sample(self.store, [self.hook], SCALED_BY, device())[self.hook]

    def held_out(self, count: int) -> HeldOut | None:
        """Up to `count` rows of the validation split, read once; None without one. Raises UserError where they are all the same."""
        if self.validation is not None and count not in self._measured:
            found = sample(self.validation, self.hooks, count, device())
            held_out = HeldOut(found[self.hook], found[self.output])
            if not held_out.variance > 0:
                told = f"hook {self.output} is constant over the {len(held_out.y_NE):,} rows of the validation split that are measured"
                raise UserError(f"{told}: take `validation` out of the `splits` of these activations, or give it other rows")
            self._measured[count] = held_out
        return self._measured.get(count)


def loader(source: Source, spec: Spec) -> ActivationLoader:
    """The batches of a run."""
    settings = spec.training
    return ActivationLoader(source.store, source.hooks, settings.batch, spec.seed, settings.memory_mb, device())


def begun(sae: SAE, spec: Spec, source: Source, batches: ActivationLoader, group: Group = ALONE, name: str = "") -> Run:
    """A run before its first step; `name` stands before its messages. Raises UserError when it cannot be as `spec` says."""
    settings, store, called = spec.training, source.store, f"{name}: " if name else ""
    if settings.precision == "bfloat16" and not has_bfloat16(device()):
        raise UserError(f"{called}training.precision: this machine has no products in bfloat16; give float32")
    if source.validation is None and (taken := settings.held_out()):
        raise UserError(f"{called}training.{taken}: goes by a loss on held-out rows, and the activations have no `validation` split")
    steps = settings.epochs * batches.steps()
    if late := [step for step in settings.snapshots if step > steps]:
        raise UserError(f"{called}training.snapshots: {late[0]:,} is after the last step, {steps:,}")
    rows = settings.epochs * batches.rows
    window = settings.window(rows)
    if early := [share for share in settings.resample if ceil(share * steps) * settings.batch < window]:
        told = f"at {early[0]:g} of the run no latent is dead yet: that takes {window:,} of its {rows:,} rows without a fire"
        raise UserError(f"{called}training.resample: {told}; resample later, or give a smaller `dead_share` or `dead_tokens`")
    inputs, variance = normalise.units(store, source.hook, spec.normalise, device())
    outputs = inputs
    if source.output != source.hook:
        outputs, variance = normalise.units(store, source.output, spec.normalise, device())
    centre = torch.zeros(len(outputs.shift), device=device())
    if spec.b_dec == "mean":
        centre = outputs.apply(torch.from_numpy(store.mean(source.output)).float().to(device()).unsqueeze(0)).squeeze(0)
    elif spec.b_dec == "geometric-median":
        centre = normalise.geometric_median(outputs.apply(source.sample()[1]))
    data = Data(inputs, outputs, variance, centre, rows, steps, inputs.apply(source.few))
    return Run(sae, spec, data, group, source.held_out(settings.validate_on) if group.first else None, source.sample, name)


def train(
    runs: dict[str, Run],
    source: Source,
    batches: ActivationLoader,
    snapshots: Snapshots | None = None,
    trackers: dict[str, Tracker | None] | None = None,
) -> None:
    """Takes runs, by name, to their end, from where a snapshot stands. They share the batches: seed, size and epochs are the same. Raises
    UserError when one of them goes wrong and its settings say to stop."""
    one = next(iter(runs.values()))
    group, epochs = one.group, one.settings.epochs
    position = _position(runs, snapshots, group) if snapshots else Position()
    if group.first:
        _tell_windows(runs)
    done = max(run.at.step for run in runs.values())
    with (
        progress("training" if len(runs) == 1 else f"training {len(runs)} SAEs", one.data.steps, done=done)
        if group.first
        else nullcontext() as bar,
        closing(batches.batches(position, epochs)) as passing,  # type: ignore[type-var]
    ):
        begun_at, rows = time.perf_counter(), 0
        for batch in passing:
            rows += len(batch)
            for name, run in runs.items():
                if run.at.ended:
                    continue
                row = run.step(batch[source.hook], batch[source.output])
                if run.at.step in run.settings.snapshots and not run.at.diverged and snapshots and group.first:
                    with replacing(kept_file(snapshots.folder, name, run.at.step)) as beside:
                        checkpoint.write_weights(beside, run.folded())
                if row and bar:
                    bar.advance(0, _note(row, name if len(runs) > 1 else ""))
                if row and (tracker := (trackers or {}).get(name)):
                    tracker.log(row, {"rows_per_second": rows / (time.perf_counter() - begun_at)})
            if bar:
                bar.advance()
            if all(run.at.ended for run in runs.values()):
                return
            if snapshots and group.said(snapshots.due()):
                _save(runs, snapshots, batch.after)


def _note(row: dict[str, float], name: str) -> str:
    fve = f"held-out FVE {row['validation_fve']:.4f}" if "validation_fve" in row else f"FVE {row['fve']:.4f}"
    return f"{name and name + ': '}loss {row['loss']:.5f}, {fve}, L0 {row['l0']:.1f}, dead {row['dead']:.1%}"


def _tell_windows(runs: dict[str, Run]) -> None:
    windows: dict[int, list[str]] = {}
    for name, run in runs.items():
        windows.setdefault(run.window, []).append(name)
    for window, names in sorted(windows.items()):
        called = f"{', '.join(names)}: " if len(windows) > 1 else ""
        share = window / runs[names[0]].data.rows
        say(f"{called}a latent is dead when it has not fired in {window:,} rows, {share:.0%} of the run")


def kept_file(folder: Path, name: str, step: int) -> Path:
    """Where the weights of a stated step of a run lie until it is published."""
    return folder / name / f"step_{step}.safetensors"


def _save(runs: dict[str, Run], snapshots: Snapshots, position: Position) -> None:
    tensors = {f"{name}/{key}": value for name, run in runs.items() for key, value in run.tensors().items()}
    if next(iter(runs.values())).group.first:
        at: dict[str, Any] = {name: vars(run.at) for name, run in runs.items()}
        snapshots.save(tensors, {"position": [position.epoch, position.batch], "runs": at})


def _position(runs: dict[str, Run], snapshots: Snapshots, group: Group) -> Position:
    """Where the runs go on, restored from a snapshot where there is one, with all that they kept until then."""
    stored = snapshots.load()
    if stored and (lost := _lost(runs, stored[1]["runs"], snapshots.folder)):
        if group.first:
            say(f"{lost[0]}: the weights of a stated step are missing; the run starts at its beginning")
        stored = None
    if stored is None:
        if group.first:
            snapshots.clear()
        return Position()
    tensors, values = stored
    for name, run in runs.items():
        run.restore(under(f"{name}/", tensors), values["runs"][name])
    return Position(*values["position"])


def _lost(runs: dict[str, Run], at: dict[str, Any], folder: Path) -> list[Path]:
    """Files of stated steps that runs have passed and that are not there."""
    passed = {name: Progress(**at[name]).last_step for name in runs}
    files = [kept_file(folder, name, step) for name, run in runs.items() for step in run.settings.snapshots if step <= passed[name]]
    return [file for file in files if not file.is_file()]


@torch.no_grad()
def log_sparsity(sae: SAE, column: Column, batch: int) -> Tensor:
    """log10 of each latent's firing frequency plus 1e-10 (M,), as SAELens writes it; over rows that are not flagged."""
    rows = 0
    fired_M = torch.zeros(len(sae.W_dec), dtype=torch.int64, device=sae.W_dec.device)
    for x in column.batches(batch, SPARSITY_ROWS):
        rows += len(x)
        fired_M += (sae.encode(torch.from_numpy(x).to(fired_M.device)) != 0).sum(0)
    return torch.log10(fired_M.double() / rows + 1e-10).float().cpu()
