"""Trains a model: a run is a function of (dataset, spec, seed)."""

import itertools
from collections.abc import Iterator
from math import isfinite

import torch
from torch import Tensor

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.seeds import derive
from pipeline.console import progress
from pipeline.models.base import Network
from pipeline.models.examples import Examples, TableExamples
from pipeline.study.model import Model
from pipeline.training.curve import Curve
from pipeline.training.optimizer import ScheduledAdamW


def train(model: Network, spec: Model, train_split: Examples, validation: Examples | None) -> Curve:
    """Trains `model` in place as `spec` (a study's model spec) says. Raises UserError when the loss is not finite."""
    settings = spec.training
    steps, every = spec.length(len(train_split))
    torch.manual_seed(derive(spec.seed, "model", "dropout"))
    optimizer = ScheduledAdamW(model, settings, steps)
    curve = Curve()
    total, count = torch.zeros(()), 0
    model.train()
    with progress("training", steps) as bar:
        for step, (inputs, targets) in enumerate(itertools.islice(_epochs(train_split, settings.batch, spec.seed), steps), 1):
            loss = model.losses(model(inputs), targets).mean()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            count += 1
            if step % every == 0 or step == steps:
                row = {"step": step, "lr": optimizer.lr, "train_loss": total.item() / count}
                if validation is not None:
                    row["validation_loss"] = measure(model, validation, settings.batch)["loss"]
                if not all(isfinite(value) for value in row.values()):
                    raise UserError(f"training diverged: the loss is not finite after step {step}; lower training.lr")
                curve.add(**row)
                bar.advance(0, ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if "loss" in name))
                total, count = torch.zeros(()), 0
                model.train()
            bar.advance()
    return curve


def _epochs(split: Examples, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    for number in itertools.count():
        yield from split.epoch(number, size, seed)


@torch.no_grad()
def measure(model: Network, split: Examples, size: int) -> dict[str, float]:
    """Mean loss over all positions of a split, and for tables the share of predictions that round to the target. `size`
    sequences go through the model at a time."""
    model.eval()
    total, right, count = 0.0, 0, 0
    for batch in split.batches(size):
        output = model(batch.inputs)
        total += model.losses(output, batch.targets).double().sum().item()
        count += batch.targets.numel()
        if isinstance(split, TableExamples):
            right += int((output.round() == batch.targets).sum())
    found = {"loss": total / count, "positions": count}
    return {**found, "rounded_accuracy": right / count} if isinstance(split, TableExamples) else found
