"""Measures an SAE on a held-out split: reconstruction, sparsity, and the model's loss with it spliced in."""

from pathlib import Path
from typing import Any

import torch

from pipeline.activations.store import ActivationStore, Column
from pipeline.activations.trace import check_source
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Artifact, publishing
from pipeline.console import progress
from pipeline.evaluation import splice
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.reconstruction import Reconstruction
from pipeline.evaluation.sparsity import Sparsity
from pipeline.models import checkpoint as models
from pipeline.models.examples import examples
from pipeline.saes import checkpoint
from pipeline.saes.base import SAE
from pipeline.steps import command


@torch.no_grad()
def main(spec: dict[str, Any], sae: Path, store: Path, model: Path, dataset: Path, out: Path) -> None:
    """Measure an SAE on one split of its store, and spliced into the model on the same split of the dataset."""
    torch.set_num_threads(spec["threads"])
    trained, data, host = Artifact.open(sae), Artifact.open(dataset), Artifact.open(model)
    activations = ActivationStore(store)
    check_source(activations, data)
    dictionary, hook, size = checkpoint.load(trained), spec["hook"], spec["batch"]
    column = activations[hook]
    found = _over_rows(dictionary, column, size, spec["active_above"])
    measured = Measured(activations, hook)
    split = examples(data, spec["split"], host.spec.get("context"))
    mean = torch.from_numpy(activations.mean(hook))

    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([dictionary.decode(dictionary.encode(some)) for some in x.float().split(size)])

    inputs = {"sae": trained, "activations": activations.artifact, "model": host, "dataset": data}
    with publishing(out, "evaluation", spec, inputs) as draft:
        batch = models.settings(host.spec).scoring_batch()
        metrics = {
            "rows": column.kept_rows(),
            "flagged": len(column) - column.kept_rows(),
            "left_out": measured.left_out,
            "split": spec["split"],
            "hook": hook,
            **found,
            **splice.losses(models.load(host), split, hook, reconstruct, mean, batch, measured),
        }
        draft.write_json("metrics.json", metrics)


def _over_rows(dictionary: SAE, column: Column, size: int, active_above: float) -> dict[str, Any]:
    """Reconstruction and sparsity over the rows that are not flagged, `size` of them at a time."""
    reconstruction: Reconstruction | None = None
    sparsity: Sparsity | None = None
    with progress("evaluate", column.kept_rows(), "rows") as bar:
        for rows in column.batches(size):
            x = torch.from_numpy(rows)
            latents = dictionary.encode(x)
            rebuilt, counted = Reconstruction.of(x, dictionary.decode(latents)), Sparsity.of(latents, active_above)
            reconstruction = rebuilt if reconstruction is None else reconstruction + rebuilt
            sparsity = counted if sparsity is None else sparsity + counted
            bar.advance(len(x))
    if reconstruction is None or sparsity is None:
        raise UserError(
            f"hook {column.name}: all {len(column):,} rows are flagged as attention sinks; record more rows, or raise sinks_above"
        )
    return {**reconstruction.finish(), **sparsity.finish(active_above)}


if __name__ == "__main__":
    command.run(main)
