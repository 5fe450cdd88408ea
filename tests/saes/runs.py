"""Rows that an SAE can learn, and runs on them."""

import numpy as np
import torch

from pipeline.saes import checkpoint
from pipeline.saes.train import Source, begun, loader, train

RELU = {"architecture": "relu", "l1": 0.01}
TOPK = {"architecture": "topk", "k": 3}
TRAINING = {"epochs": 8, "batch": 30, "lr": 0.01, "schedule": {"shape": "linear", "warmup": 5}, "when_wrong": "warn"}


def rows(count: int = 300, width: int = 8, seed: int = 0) -> np.ndarray:
    """Rows that are sparse sums of twelve directions, away from zero."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(12, width))
    generator = np.random.default_rng(seed)
    return 2.0 + (generator.random((count, 12)) * (generator.random((count, 12)) < 0.15)) @ directions


def made(store, validation=None, **spec):
    """A run before its first step, and what `train` takes besides."""
    torch.manual_seed(sum(map(ord, str(spec))))  # whatever ran before
    source = Source(store, "x", "x", validation)
    sae, settings = checkpoint.build({"latents": 24, "training": TRAINING, "hook": "x", **spec}, 8)
    batches = loader(source, settings)
    return begun(sae, settings, source, batches), source, batches


def run(store, validation=None, **spec):
    """A finished run."""
    found, source, batches = made(store, validation, **spec)
    train({"sae": found}, source, batches)
    return found


def bits(run) -> list[bytes]:
    return [value.contiguous().numpy().tobytes() for value in run.sae.state_dict().values()]


def listened(found, seen: list):
    """The run, with what its SAE is given written down."""
    losses = found.sae.losses

    def heard(x, y, at):
        seen.append((x.clone(), found.sae.W_dec.detach().clone(), at))
        return losses(x, y, at)

    found.sae.losses = heard
    return found
