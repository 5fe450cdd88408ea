"""Measures an SAE on a held-out split: reconstruction, sparsity, and the model's loss with it spliced in."""

from pathlib import Path
from typing import Any

import torch

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.manifest import Artifact, publishing
from pipeline.console import progress
from pipeline.evaluation import splice
from pipeline.evaluation.reconstruction import Reconstruction
from pipeline.evaluation.sparsity import Sparsity
from pipeline.models import checkpoint as models
from pipeline.models.examples import examples
from pipeline.saes import checkpoint
from pipeline.steps import command


@torch.no_grad()
def main(spec: dict[str, Any], sae: Path, store: Path, model: Path, dataset: Path, out: Path) -> None:
    """Measure an SAE on one split of its store, and spliced into the model on the same split of the dataset."""
    torch.set_num_threads(spec["threads"])
    trained, data, host = Artifact.open(sae), Artifact.open(dataset), Artifact.open(model)
    activations = ActivationStore(store)
    dictionary, column, size = checkpoint.load(trained), activations[spec["hook"]], spec["batch"]
    reconstruction: Reconstruction | None = None
    sparsity: Sparsity | None = None
    with progress("evaluate", len(column), "rows") as bar:
        for rows in column.batches(size):
            x = torch.from_numpy(rows)
            latents = dictionary.encode(x)
            rebuilt, counted = Reconstruction.of(x, dictionary.decode(latents)), Sparsity.of(latents, spec["active_above"])
            reconstruction = rebuilt if reconstruction is None else reconstruction + rebuilt
            sparsity = counted if sparsity is None else sparsity + counted
            bar.advance(len(x))
    # As many sequences as the store holds rows of, so that every metric is of the same part of the split.
    sequences = int(activations["sequence"].read(len(column) - 1, len(column))[0]) + 1
    split = examples(data, spec["split"], host.spec.get("context"))
    mean = torch.from_numpy(activations.mean(spec["hook"]))

    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).float().split(size)
        return torch.cat([dictionary.decode(dictionary.encode(some)) for some in rows]).view_as(x).to(x)

    assert reconstruction is not None and sparsity is not None
    with publishing(
        out, "evaluation", spec, {"sae": trained, "activations": activations.artifact, "model": host, "dataset": data}
    ) as draft:
        metrics = {
            "rows": len(column),
            "split": spec["split"],
            "hook": spec["hook"],
            **reconstruction.finish(),
            **sparsity.finish(spec["active_above"]),
            **splice.losses(
                models.load(host), split, spec["hook"], reconstruct, mean, models.settings(host.spec).scoring_batch(), sequences
            ),
        }
        draft.write_json("metrics.json", metrics)


if __name__ == "__main__":
    command.run(main)
