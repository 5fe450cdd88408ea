"""Measures an SAE on a held-out split: reconstruction, sparsity, and the model's loss with it spliced in."""

from pathlib import Path
from typing import Any

import torch

from pipeline.activations.store import ActivationStore
from pipeline.activations.trace import check_source
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import Artifact
from pipeline.artifacts.publishing import publishing
from pipeline.console import progress
from pipeline.evaluation import splice
from pipeline.evaluation.measured import Measured, batches
from pipeline.evaluation.reconstruction import Reconstruction
from pipeline.evaluation.sparsity import Sparsity
from pipeline.models import checkpoint as models
from pipeline.models.examples import examples
from pipeline.saes import checkpoint
from pipeline.saes.base import SAE
from pipeline.steps import command
from pipeline.training.device import device


@torch.no_grad()
def main(spec: dict[str, Any], sae: Path, store: Path, model: Path, dataset: Path, out: Path) -> None:
    """Measure an SAE on one split of its store, and spliced into the model on the same split of the dataset.

    A transcoder is measured by what it predicts of its output hook, at the rows that are flagged at neither hook.
    """
    torch.set_num_threads(spec["threads"])
    trained, data, host = Artifact.open(sae), Artifact.open(dataset), Artifact.open(model)
    activations = ActivationStore(store)
    check_source(activations, data)
    dictionary, size = checkpoint.load(trained).to(device()), spec["batch"]
    hook, output = spec["hook"], spec["output"]
    hooks = list(dict.fromkeys((hook, output)))
    reconstruction, sparsity = _over_rows(dictionary, activations, hooks, size, spec["active_above"])
    measured = Measured(activations, *hooks)
    split = examples(data, spec["split"], host.spec.get("context"))

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([dictionary(some) for some in x.float().split(size)])

    inputs = {"sae": trained, "activations": activations.artifact, "model": host, "dataset": data}
    with publishing(out, "evaluation", spec, inputs) as draft:
        network, batch = models.load(host).to(device()), models.settings(host.spec).scoring_batch()
        metrics = {
            "rows": reconstruction.rows,
            "flagged": len(activations) - reconstruction.rows,
            "left_out": measured.left_out,
            "split": spec["split"],
            "hook": hook,
            "output": output,
            **reconstruction.finish(),
            **sparsity.finish(spec["active_above"]),
            **splice.losses(network, split, hook, predict, reconstruction.mean, batch, measured, output),
        }
        draft.write_json("metrics.json", metrics)


def _over_rows(sae: SAE, store: ActivationStore, hooks: list[str], size: int, active_above: float) -> tuple[Reconstruction, Sparsity]:
    """Reconstruction and sparsity over the rows that are flagged at none of the hooks, `size` of them at a time: the one that is read,
    and of a transcoder the one that is predicted."""
    reconstruction: Reconstruction | None = None
    sparsity: Sparsity | None = None
    with progress("evaluate", len(store), "rows") as bar:
        for found in batches([store[hook] for hook in hooks], size):
            x, y = found[0].to(device()), found[-1].to(device())
            latents = sae.encode(x)
            predicted, counted = Reconstruction.of(y, sae.predict(latents, x)), Sparsity.of(latents, active_above)
            reconstruction = predicted if reconstruction is None else reconstruction + predicted
            sparsity = counted if sparsity is None else sparsity + counted
            bar.advance(len(x))
    if reconstruction is None or sparsity is None:
        raise UserError(
            f"hook {' or '.join(hooks)}: all {len(store):,} rows are flagged as attention sinks; record more rows, or raise sinks_above"
        )
    return reconstruction, sparsity


if __name__ == "__main__":
    command.run(main)
