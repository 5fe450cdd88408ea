"""Trains one SAE on one hook: a run is a function of (store, spec, seed)."""

import torch

from pipeline.activations.loader import ActivationLoader
from pipeline.activations.store import ActivationStore, Column
from pipeline.artifacts.errors import UserError
from pipeline.console import progress
from pipeline.saes.base import SAE, Losses, Step
from pipeline.study.sae import SAE as Spec
from pipeline.training.curve import Curve
from pipeline.training.optimizer import ScheduledAdamW

POINTS = 50
"""Rows in a training curve."""
SPARSITY_ROWS = 2**17
"""Rows of the train store, from its start, over which firing frequencies are counted."""


def train(sae: SAE, spec: Spec, store: ActivationStore, hook: str) -> Curve:
    """Trains `sae` in place as `spec` (a study's SAE spec) says. Raises UserError when the loss is not finite."""
    settings = spec.training
    if settings.lr is None:
        settings = settings.model_copy(update={"lr": 2e-4 * (sae.W_dec.shape[0] / 2**14) ** -0.5})
    loader = ActivationLoader(store, hook, settings.batch, spec.seed, settings.memory_mb)
    variance = store.variance(hook)
    if not variance > 0:
        raise UserError(f"hook {hook} is constant over the train split: there is nothing to reconstruct")
    sae.initialise(torch.from_numpy(store.mean(hook)).float())
    steps = settings.epochs * loader.steps()
    optimizer = ScheduledAdamW(sae, settings, steps)
    curve, sums = Curve(), _Sums(sae.W_dec.shape[0])
    every = max(1, steps // POINTS)
    step = 0
    with progress("training", steps) as bar:
        for batch in loader.batches(epochs=settings.epochs):
            x = batch[hook]
            found = sae.losses(x, x, Step(variance))
            found.total.backward()
            optimizer.step()
            step += 1
            sums.add(found, len(x))
            if step % every == 0 or step == steps:
                row = sums.take(variance)
                if not row["loss"] < float("inf"):
                    raise UserError(f"training diverged: the loss is {row['loss']} after step {step}; lower training.lr")
                curve.add(step=step, lr=optimizer.lr, **row)
                bar.advance(0, f"loss {row['loss']:.5f}, FVE {row['fve']:.4f}, L0 {row['l0']:.1f}")
            bar.advance()
    if not all(parameter.isfinite().all() for parameter in sae.parameters()):
        raise UserError("training diverged: the weights are not finite after the last step; lower training.lr")
    return curve


class _Sums:
    """What happened since the last row of the curve."""

    def __init__(self, latents: int) -> None:
        self.latents = latents
        self.clear()

    def clear(self) -> None:
        self.rows = self.steps = 0
        self.parts: dict[str, torch.Tensor] = {}
        self.fired = torch.zeros(self.latents, dtype=torch.int64)
        self.squared = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def add(self, found: Losses, rows: int) -> None:
        self.rows += rows
        self.steps += 1
        for name, value in {"loss": found.total, **found.parts}.items():
            self.parts[name] = self.parts.get(name, torch.zeros(())) + value.detach()
        self.fired += found.fired_M
        self.squared += found.squared_error.detach()

    def take(self, variance: float) -> dict[str, float]:
        row = {name: value.item() / self.steps for name, value in self.parts.items()}
        row |= {
            "fve": 1 - self.squared.item() / self.rows / variance,
            "l0": self.fired.sum().item() / self.rows,
            "dead": (self.fired == 0).double().mean().item(),
        }
        self.clear()
        return row


@torch.no_grad()
def log_sparsity(sae: SAE, column: Column, batch: int) -> torch.Tensor:
    """log10 of each latent's firing frequency plus 1e-10 (M,), as SAELens writes it; over rows that are not flagged."""
    rows = 0
    fired = torch.zeros(sae.W_dec.shape[0], dtype=torch.int64)
    for x in column.batches(batch, SPARSITY_ROWS):
        rows += len(x)
        fired += (sae.encode(torch.from_numpy(x)) != 0).sum(0)
    return torch.log10(fired.double() / rows + 1e-10).float()
