"""Describes the latents of an SAE and publishes two Parquet tables."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.features.describe import describe
from pipeline.saes import checkpoint
from pipeline.steps import command


def main(spec: dict[str, Any], sae: Path, store: Path, dataset: Path, out: Path) -> None:
    """Describe each latent of an SAE: how often and how strongly it fires, and the contexts where it is strongest."""
    torch.set_num_threads(spec["threads"])
    trained, data, activations = Artifact.open(sae), Artifact.open(dataset), ActivationStore(store)
    with publishing(out, "features", spec, {"sae": trained, "activations": activations.artifact, "dataset": data}) as draft:
        latents, contexts = describe(checkpoint.load(trained), activations, data, spec)
        pq.write_table(latents, draft.path("latents.parquet"))
        pq.write_table(contexts, draft.path("contexts.parquet"))


if __name__ == "__main__":
    command.run(main)
