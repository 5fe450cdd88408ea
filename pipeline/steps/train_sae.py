"""Trains an SAE on a hook and publishes it beside its curve."""

from pathlib import Path
from typing import Any

import torch

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import publishing
from pipeline.saes import checkpoint
from pipeline.saes.train import log_sparsity, train
from pipeline.steps import command


def main(spec: dict[str, Any], store: Path, out: Path) -> None:
    """Train one SAE on one hook of a store and publish it, with its curve, in SAELens' layout."""
    torch.set_num_threads(spec["threads"])
    activations = ActivationStore(store)
    column = activations[spec["hook"]]
    sae, settings = checkpoint.build(spec, column.shape[1])
    with publishing(out, "sae", spec, {"activations": activations.artifact}) as draft:
        curve = train(sae, settings, activations, spec["hook"])
        curve.write(draft.path("training.parquet"))
        checkpoint.save(draft, sae, spec, log_sparsity(sae, column, settings.training.batch))


if __name__ == "__main__":
    command.run(main)
